//! Signatures for Secure Boot, with the key of whoever builds the images. Without one nothing is signed: nobody's key
//! would be trusted by all firmware.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use truthdb_installer::platform::image::is_signed;

use crate::hash;
use crate::options::Options;
use crate::process::{self, output, tool};

/// Name of the certificate on a medium, for the firmware's page that takes keys from a file.
pub(crate) const CERTIFICATE_FILE: &str = "TRUTHDB.CER";

/// A key, and the certificate that firmware is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signer {
    key: PathBuf,
    certificate: PathBuf,
}

impl Signer {
    /// The one that the command line names, if it does.
    ///
    /// # Errors
    ///
    /// Half of it, or a file that is not there.
    pub(crate) fn of(options: &Options) -> Result<Option<Self>> {
        let (key, certificate) = match (&options.sign_key, &options.sign_certificate) {
            (None, None) => return Ok(None),
            (Some(key), Some(certificate)) => (key.clone(), certificate.clone()),
            _ => bail!("--sign-key and --sign-certificate are given together"),
        };
        let signer = Self { key, certificate };
        ensure!(
            signer.key.is_file(),
            "{} is not there",
            signer.key.display()
        );
        signer.certificate_der()?;
        Ok(Some(signer))
    }

    /// An image with a signature.
    ///
    /// # Errors
    ///
    /// sbsign's: a key with a pass phrase, or one that does not belong to the certificate.
    pub(crate) fn sign(&self, image: &[u8], scratch: &Path) -> Result<Vec<u8>> {
        let [unsigned, signed] = ["unsigned.efi", "signed.efi"].map(|name| scratch.join(name));
        process::write(&unsigned, image)?;
        output(
            tool("sbsign")
                .arg("--key")
                .arg(&self.key)
                .arg("--cert")
                .arg(&self.certificate)
                .arg("--output")
                .arg(&signed)
                .arg(&unsigned),
        )
        .context("signing: the key must have no pass phrase, and be that of the certificate")?;
        process::read(&signed)
    }

    /// The certificate, as firmware takes it.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or is no certificate in PEM.
    pub(crate) fn certificate_der(&self) -> Result<Vec<u8>> {
        let text = process::read(&self.certificate)?;
        let der = CertificateDer::from_pem_slice(&text)
            .ok()
            .with_context(|| {
                format!(
                    "{} is no certificate in PEM (`-----BEGIN CERTIFICATE-----`)",
                    self.certificate.display()
                )
            })?;
        Ok(der.to_vec())
    }

    /// SHA-256 of the certificate.
    ///
    /// # Errors
    ///
    /// Those of [`Self::certificate_der`].
    pub(crate) fn fingerprint(&self) -> Result<String> {
        Ok(hash::of_bytes(&self.certificate_der()?))
    }
}

/// Refuses a given system without a signature where one is asked for.
///
/// # Errors
///
/// It has none.
pub(crate) fn check_given(signer: Option<&Signer>, image: &[u8], path: &Path) -> Result<()> {
    ensure!(
        signer.is_none() || is_signed(image),
        "{} is not signed, and what is made of it is to be: sign it first (sbsign), or leave --runtime away",
        path.display()
    );
    Ok(())
}

/// Shown before work starts.
impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "with {}, certificate {}",
            self.key.display(),
            self.certificate.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::has;
    use crate::uki;

    /// A key and its certificate, made by openssl, as the documentation says.
    fn pair(folder: &Path, name: &str) -> Option<Signer> {
        let [key, certificate] = ["key", "pem"].map(|end| folder.join(format!("{name}.{end}")));
        let made = tool("openssl")
            .args([
                "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "3650",
            ])
            .arg("-subj")
            .arg(format!("/CN={name}/"))
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output();
        let openssl = made.is_ok_and(|made| made.status.success());
        let sbsign = tool("sbsign").arg("--version").output();
        let is_there =
            has("openssl", openssl, "openssl") && has("sbsign", sbsign.is_ok(), "sbsigntool");
        is_there.then_some(Signer { key, certificate })
    }

    #[test]
    fn an_image_is_signed_with_the_key_of_the_certificate_only() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = ["one", "other"].map(|name| pair(folder.path(), name));
        let [Some(one), Some(other)] = pairs else {
            return;
        };
        let stub = std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub");
        let image = stub.unwrap_or_else(|_| uki::tests::stub(2));
        let signed = one.sign(&image, folder.path()).unwrap();
        assert!(is_signed(&signed) && !is_signed(&image));
        check_given(Some(&one), &signed, Path::new("x")).unwrap();
        let error = check_given(Some(&one), &image, Path::new("x")).unwrap_err();
        assert!(
            error.to_string().contains("leave --runtime away"),
            "{error}"
        );
        check_given(None, &image, Path::new("x")).unwrap();
        assert_eq!(one.fingerprint().unwrap().len(), 64);
        let mixed = Signer {
            certificate: other.certificate,
            ..one
        };
        let error = format!("{:#}", mixed.sign(&image, folder.path()).unwrap_err());
        assert!(error.contains("be that of the certificate"), "{error}");
    }

    #[test]
    fn half_of_a_signer_and_what_is_no_certificate_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\n").unwrap();
        let options = |key: Option<&PathBuf>, certificate: Option<&PathBuf>| Options {
            sign_key: key.cloned(),
            sign_certificate: certificate.cloned(),
            ..Options::default()
        };
        assert_eq!(Signer::of(&options(None, None)).unwrap(), None);
        let error = Signer::of(&options(Some(&path), None)).unwrap_err();
        assert!(error.to_string().contains("together"), "{error}");
        let error = Signer::of(&options(Some(&path), Some(&path))).unwrap_err();
        assert!(
            error.to_string().contains("no certificate in PEM"),
            "{error}"
        );
        let nowhere = folder.path().join("nowhere");
        let error = Signer::of(&options(Some(&nowhere), Some(&path))).unwrap_err();
        assert!(error.to_string().contains("is not there"), "{error}");
    }
}
