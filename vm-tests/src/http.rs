//! The least of HTTP that a test needs: one request, one answer, one connection.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// An answer that takes longer is none.
const WAIT: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// `GET`.
///
/// # Errors
///
/// No connection, or an answer that is cut short.
pub fn get(port: u16, path: &str) -> Result<Answer> {
    ask(port, &format!("GET {path} HTTP/1.1\r\n"), "")
}

/// `POST` of JSON.
///
/// # Errors
///
/// As for [`get`]. The request may have been carried out.
pub fn post(port: u16, path: &str, body: &str) -> Result<Answer> {
    let head = format!("POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n");
    ask(port, &head, body)
}

fn ask(port: u16, head: &str, body: &str) -> Result<Answer> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, WAIT).context("connecting")?;
    stream
        .set_read_timeout(Some(WAIT))
        .context("setting a timeout")?;
    let length = body.len();
    let request = format!(
        "{head}Host: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream
        .write_all(request.as_bytes())
        .context("sending a request")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("reading an answer")?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> Result<Answer> {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is cut short")?;
    let status = head.split(' ').nth(1).context("the answer has no status")?;
    let status = status.parse().context("the answer's status")?;
    let header = |name: &str| {
        head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let body = if header("transfer-encoding") == Some("chunked") {
        unchunk(body)?
    } else {
        if let Some(length) = header("content-length") {
            let length: usize = length.parse().context("the answer's length")?;
            anyhow::ensure!(body.len() == length, "the answer is cut short");
        }
        body.to_owned()
    };
    Ok(Answer { status, body })
}

fn unchunk(mut chunks: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = chunks
            .split_once("\r\n")
            .context("the answer is cut short")?;
        let size = usize::from_str_radix(size, 16).context("the size of a chunk")?;
        if size == 0 {
            return Ok(body);
        }
        body.push_str(rest.get(..size).context("the answer is cut short")?);
        chunks = rest.get(size + 2..).context("the answer is cut short")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_chunked_answers_are_read() {
        let plain = parse("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "ok"));
        let text =
            "HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        let chunked = parse(text).unwrap();
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "abcd"));
    }

    #[test]
    fn an_answer_that_is_cut_short_is_none() {
        for cut in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        ] {
            assert!(parse(cut).is_err(), "{cut:?}");
        }
    }
}
