//! What is in an artefact, as CycloneDX: the programs of others with versions, hashes and licences, and the crates
//! that our programs are built from.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::manifest::Manifest;
use crate::process::{output, tool};

/// The bill of materials of an artefact.
///
/// # Errors
///
/// cargo cannot say what our programs are built from.
pub(crate) fn cyclonedx(
    root: &Path,
    manifest: &Manifest,
    artefact: (&str, &str, &str),
    packages: &[&str],
) -> Result<Value> {
    let (name, version, sha256) = artefact;
    let mut components = vec![
        component(
            &manifest.kernel.package,
            &manifest.kernel.version,
            "GPL-2.0-only",
            Some(&manifest.kernel.sha256),
        ),
        component(
            &manifest.stub.package,
            &manifest.stub.version,
            "LGPL-2.1-or-later",
            Some(&manifest.stub.sha256),
        ),
    ];
    for source in &manifest.source {
        let hash = &source.files[0].sha256;
        components.push(component(
            &source.name,
            &source.version,
            &source.license,
            Some(hash),
        ));
    }
    components.extend(crates(root, packages)?);
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "firmware", "name": name, "version": version,
            "hashes": [{ "alg": "SHA-256", "content": sha256 }],
        }},
        "components": components,
    }))
}

fn component(name: &str, version: &str, license: &str, sha256: Option<&str>) -> Value {
    let mut component = json!({
        "type": "application", "name": name, "version": version,
        "licenses": [{ "expression": license }],
    });
    if let Some(sha256) = sha256 {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
    }
    component
}

/// The crates that packages are built from, as components.
///
/// # Errors
///
/// cargo cannot say.
pub(crate) fn crates(root: &Path, packages: &[&str]) -> Result<Vec<Value>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let listed = output(
        tool(cargo)
            .current_dir(root)
            .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
            .args([
                "--target",
                "x86_64-unknown-linux-musl",
                "--format",
                "{p}\t{l}",
            ])
            .args(packages.iter().flat_map(|package| ["--package", package])),
    )
    .context("asking cargo for the crates")?;
    Ok(parse(&listed))
}

/// The list of `cargo tree`, sorted and without repetitions.
fn parse(listed: &str) -> Vec<Value> {
    let mut lines: Vec<(&str, &str, &str)> = listed
        .lines()
        .filter_map(|line| {
            let (package, rest) = line.split_once('\t')?;
            let license = rest.trim_end_matches(" (*)");
            let mut words = package.split(' ');
            Some((
                words.next()?,
                words.next()?.trim_start_matches('v'),
                license,
            ))
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    let component = |(name, version, license): (&str, &str, &str)| {
        json!({
            "type": "library", "name": name, "version": version,
            "purl": format!("pkg:cargo/{name}@{version}"),
            "licenses": [{ "expression": license.replace('/', " OR ") }],
        })
    };
    lines.into_iter().map(component).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_listed_once_and_in_order() {
        let listed = "truthdb v0.1.0 (/somewhere)\tApache-2.0\nzstd v0.13.5\tMIT\n\
                      anyhow v1.0.104\tMIT/Apache-2.0\nzstd v0.13.5\tMIT (*)\n\n";
        let crates = parse(listed);
        let names: Vec<&str> = crates.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["anyhow", "truthdb", "zstd"]);
        assert_eq!(crates[0]["purl"], "pkg:cargo/anyhow@1.0.104");
        assert_eq!(crates[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
    }
}
