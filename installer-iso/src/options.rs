//! The command line.

use std::path::PathBuf;

use anyhow::{Result, bail};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::disk::Format;

/// What the command line says; what is not given is built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Words behind the command.
    pub(crate) words: Vec<String>,
    /// The image's kernel.
    pub(crate) kernel: Option<PathBuf>,
    /// The server.
    pub(crate) truthdb: Option<PathBuf>,
    /// What the node needs around it.
    pub(crate) node: Option<PathBuf>,
    /// The service console.
    pub(crate) console: Option<PathBuf>,
    /// The installer.
    pub(crate) installer: Option<PathBuf>,
    /// The finished system, for media.
    pub(crate) runtime: Option<PathBuf>,
    /// A picture.
    pub(crate) splash: Option<PathBuf>,
    /// cargo's profile.
    pub(crate) profile: Option<String>,
    /// The key that the images are signed with.
    pub(crate) sign_key: Option<PathBuf>,
    /// Its certificate.
    pub(crate) sign_certificate: Option<PathBuf>,
    /// Talkative.
    pub(crate) debug: bool,
    /// Where artefacts go.
    pub(crate) out: Option<PathBuf>,
    /// The server's configuration in a disk image.
    pub(crate) config: Option<PathBuf>,
    /// The node's configuration in a disk image.
    pub(crate) node_config: Option<PathBuf>,
    /// Formats of disk images; empty: all.
    pub(crate) formats: Vec<Format>,
    /// Size of a disk image in MiB.
    pub(crate) size_mib: Option<u64>,
}

impl Options {
    /// The command and its options; `None` if help is asked for.
    ///
    /// # Errors
    ///
    /// An option that is not known.
    pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Option<(String, Self)>> {
        let mut options = Self::default();
        let mut command = None;
        while let Some(argument) = parser.next()? {
            let name = match &argument {
                Long(name) => (*name).to_owned(),
                Short('h') => return Ok(None),
                Value(_) => String::new(),
                Short(_) => return Err(argument.unexpected().into()),
            };
            let place = match name.as_str() {
                "help" => return Ok(None),
                "debug" => {
                    options.debug = true;
                    continue;
                }
                "profile" => {
                    options.profile = Some(parser.value()?.string()?);
                    continue;
                }
                "format" => {
                    options.formats.push(parser.value()?.string()?.parse()?);
                    continue;
                }
                "size" => {
                    options.size_mib = Some(parser.value()?.parse()?);
                    continue;
                }
                "config" => &mut options.config,
                "node-config" => &mut options.node_config,
                "kernel" => &mut options.kernel,
                "truthdb" => &mut options.truthdb,
                "node" => &mut options.node,
                "console" => &mut options.console,
                "installer" => &mut options.installer,
                "runtime" => &mut options.runtime,
                "splash" => &mut options.splash,
                "sign-key" => &mut options.sign_key,
                "sign-certificate" => &mut options.sign_certificate,
                "out" => &mut options.out,
                "" => {
                    let Value(word) = argument else {
                        bail!("an option without a name");
                    };
                    match &command {
                        None => command = Some(word.string()?),
                        Some(_) => options.words.push(word.string()?),
                    }
                    continue;
                }
                other => bail!("there is no option --{other}"),
            };
            *place = Some(PathBuf::from(parser.value()?));
        }
        Ok(command.map(|command| (command, options)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Option<(String, Options)>> {
        Options::parse(lexopt::Parser::from_args(arguments))
    }

    #[test]
    fn artefacts_are_given_by_path() {
        let (command, options) =
            parse(&["iso", "--kernel", "vmlinuz", "--runtime=r.efi", "--debug"])
                .unwrap()
                .unwrap();
        assert_eq!(command, "iso");
        assert_eq!(options.kernel, Some("vmlinuz".into()));
        assert_eq!(options.runtime, Some("r.efi".into()));
        assert!(options.debug && options.installer.is_none());
    }

    #[test]
    fn what_is_not_known_is_refused_and_help_is_not_an_error() {
        assert!(parse(&["iso", "--kernle", "x"]).is_err());
        assert!(parse(&["iso", "-k"]).is_err());
        assert_eq!(parse(&["iso", "--help"]).unwrap(), None);
        assert_eq!(parse(&[]).unwrap(), None);
    }
}
