//! The picture between firmware and Linux, as the stub takes it: a BMP, drawn by the code that draws every other screen
//! of the appliance.
//!
//! The stub puts it into the middle of a black screen, so the picture's ground is black too, and it is cut to what is
//! drawn.

use anyhow::{Context as _, Result};
use truthdb_installer::ui::{Page, Tone, draw::Renderer};

/// The size at which the page is drawn: the least that firmware has, so that the picture fits everywhere.
const SCREEN: (u32, u32) = (640, 480);
/// Space around what is drawn, in pixels.
const MARGIN: usize = 8;
/// Bytes of a BMP before its pixels: file header, and the oldest of information headers.
const HEADER_BYTES: usize = 14 + 40;

/// The picture.
///
/// # Errors
///
/// Nothing was drawn.
pub(crate) fn picture() -> Result<Vec<u8>> {
    let page = Page {
        splash: true,
        program: "TruthDB".into(),
        corner: String::new(),
        position: None,
        title: String::new(),
        tone: Tone::Plain,
        intro: String::new(),
        blocks: Vec::new(),
        keys: Vec::new(),
    };
    let drawn = Renderer::new().render(&page, SCREEN.0, SCREEN.1);
    let drawn = drawn.context("drawing the splash")?;
    let ground = drawn.pixels().first().copied().context("an empty splash")?;
    let width = usize::try_from(SCREEN.0)?;
    let rows: Vec<Vec<[u8; 3]>> = drawn
        .pixels()
        .chunks(width)
        .map(|row| {
            let colors = row.iter().map(|pixel| match *pixel {
                black if black == ground => [0; 3],
                lit => [lit.blue(), lit.green(), lit.red()],
            });
            colors.collect()
        })
        .collect();
    bmp(&cut(&rows)?)
}

/// Cuts a picture to what is not black, and a margin.
fn cut(rows: &[Vec<[u8; 3]>]) -> Result<Vec<Vec<[u8; 3]>>> {
    let lit = |pixel: &[u8; 3]| *pixel != [0; 3];
    let drawn_rows = rows
        .iter()
        .enumerate()
        .filter(|(_, row)| row.iter().any(lit));
    let drawn_rows: Vec<usize> = drawn_rows.map(|(at, _)| at).collect();
    let columns = rows.iter().flat_map(|row| {
        let places = row.iter().enumerate();
        places.filter(|(_, pixel)| lit(pixel)).map(|(at, _)| at)
    });
    let columns: Vec<usize> = columns.collect();
    let range = |places: &[usize], most: usize| {
        let (first, last) = (places.iter().min()?, places.iter().max()?);
        Some(first.saturating_sub(MARGIN)..(last + 1 + MARGIN).min(most))
    };
    let vertical = range(&drawn_rows, rows.len()).context("nothing is drawn")?;
    let horizontal = range(&columns, rows[0].len()).context("nothing is drawn")?;
    let cut_row = |row: &Vec<[u8; 3]>| row[horizontal.clone()].to_vec();
    Ok(rows[vertical].iter().map(cut_row).collect())
}

/// Rows of blue, green and red as an uncompressed BMP.
fn bmp(rows: &[Vec<[u8; 3]>]) -> Result<Vec<u8>> {
    let (width, height) = (rows.first().map_or(0, Vec::len), rows.len());
    // A row takes a multiple of four bytes.
    let padding = (4 - width * 3 % 4) % 4;
    let pixel_bytes = (width * 3 + padding) * height;
    let number = |value: usize| u32::try_from(value).context("a picture that is too large");
    let mut out = b"BM".to_vec();
    let fields = [
        HEADER_BYTES + pixel_bytes,
        0,
        HEADER_BYTES,
        40,
        width,
        height,
    ];
    for field in fields {
        out.extend_from_slice(&number(field)?.to_le_bytes());
    }
    // One plane, 24 bits for a pixel; then no compression, the size, and what is left at 0.
    for field in [1u16, 24] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for field in [0, pixel_bytes, 0, 0, 0, 0] {
        out.extend_from_slice(&number(field)?.to_le_bytes());
    }
    // From the bottom up.
    for row in rows.iter().rev() {
        out.extend(row.iter().flatten());
        out.extend(std::iter::repeat_n(0, padding));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        let field: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
        usize::try_from(u32::from_le_bytes(field)).unwrap()
    }

    #[test]
    fn the_splash_is_a_picture_that_the_stub_takes_and_always_the_same() {
        let picture = picture().unwrap();
        assert_eq!(u32_at(&picture, 2), picture.len());
        let (width, height) = (u32_at(&picture, 18), u32_at(&picture, 22));
        assert_eq!(u32_at(&picture, 10), HEADER_BYTES);
        assert!((100..=640).contains(&width) && (100..=480).contains(&height));
        assert_eq!(
            picture.len(),
            HEADER_BYTES + (width * 3).next_multiple_of(4) * height
        );
        // The margin, in every corner, is the stub's black.
        assert_eq!(picture[HEADER_BYTES..HEADER_BYTES + 3], [0, 0, 0]);
        let lit = picture[HEADER_BYTES..].iter().filter(|byte| **byte > 100);
        assert!(lit.count() > 1000);
        assert!(picture == super::picture().unwrap());
    }

    #[test]
    fn rows_are_padded_and_begin_at_the_bottom() {
        let bytes = bmp(&[vec![[1, 2, 3]], vec![[4, 5, 6]]]).unwrap();
        assert_eq!(bytes[HEADER_BYTES..], [4, 5, 6, 0, 1, 2, 3, 0]);
        assert!(cut(&[vec![[0; 3]]]).is_err());
    }
}
