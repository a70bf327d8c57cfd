//! The command line.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use lexopt::prelude::{Long, Short, Value, ValueExt as _};

use crate::disk::Format;
use crate::plan::What;

/// What the command line says; what is not given is built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Words behind the command.
    pub(crate) words: Vec<String>,
    /// The image's kernel; of an ISO the installer's.
    pub(crate) kernel: Option<PathBuf>,
    /// The kernel of the system on an ISO.
    pub(crate) runtime_kernel: Option<PathBuf>,
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
                "runtime-kernel" => &mut options.runtime_kernel,
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

    /// Names of the options that are given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        // Every field: a new one is not forgotten here.
        let Self {
            words: _,
            kernel,
            runtime_kernel,
            truthdb,
            node,
            console,
            installer,
            runtime,
            splash,
            profile,
            sign_key,
            sign_certificate,
            debug,
            out,
            config,
            node_config,
            formats,
            size_mib,
        } = self;
        let all = [
            ("kernel", kernel.is_some()),
            ("runtime-kernel", runtime_kernel.is_some()),
            ("truthdb", truthdb.is_some()),
            ("node", node.is_some()),
            ("console", console.is_some()),
            ("installer", installer.is_some()),
            ("runtime", runtime.is_some()),
            ("splash", splash.is_some()),
            ("profile", profile.is_some()),
            ("sign-key", sign_key.is_some()),
            ("sign-certificate", sign_certificate.is_some()),
            ("debug", *debug),
            ("out", out.is_some()),
            ("config", config.is_some()),
            ("node-config", node_config.is_some()),
            ("format", !formats.is_empty()),
            ("size", size_mib.is_some()),
        ];
        let given = all.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(name, _)| name).collect()
    }

    /// Refuses words and options that a command has no use for, so that nobody believes they had one.
    ///
    /// # Errors
    ///
    /// The first of them.
    pub(crate) fn check_for(&self, what: What) -> Result<()> {
        let words = usize::from(matches!(what, What::Kernel(_)));
        if let Some(word) = self.words.get(words) {
            bail!("{word:?} is one word too many");
        }
        let command = what.command();
        for name in self.given() {
            let is_taken = takes(what, name);
            ensure!(
                is_taken || what != What::Release,
                "a release is made from this tree and nothing else, and --{name} would change what is published: it \
                 takes --out, --sign-key and --sign-certificate only"
            );
            ensure!(
                is_taken,
                "{command} has no use for --{name} (--help says which options are for what)"
            );
            ensure!(
                self.runtime.is_none() || !is_of_the_system(what, name),
                "--runtime gives the whole system, and --{name} would change nothing in it: leave one of them away"
            );
        }
        ensure!(
            self.profile.is_none() || self.builds_programs(what),
            "every program is given, and --profile would change none of them: leave it away"
        );
        Ok(())
    }

    /// Whether any of our programs is built, and not given.
    fn builds_programs(&self, what: What) -> bool {
        let of_the_system = [&self.truthdb, &self.node, &self.console];
        let has_system =
            self.runtime.is_some() || of_the_system.iter().all(|given| given.is_some());
        let has_installer = what != What::Iso || self.installer.is_some();
        !(has_system && has_installer)
    }
}

/// Which command takes which option.
fn takes(what: What, option: &str) -> bool {
    let makes_an_image = matches!(what, What::Runtime | What::Iso | What::Disk);
    match option {
        "out" | "sign-key" | "sign-certificate" => makes_an_image || what == What::Release,
        "kernel" | "truthdb" | "node" | "console" | "splash" | "profile" | "debug" => {
            makes_an_image
        }
        "runtime" => matches!(what, What::Iso | What::Disk),
        "runtime-kernel" | "installer" => what == What::Iso,
        "config" | "node-config" | "format" | "size" => what == What::Disk,
        _ => false,
    }
}

/// Whether an option changes nothing but the system that is installed. On an ISO there is the installer besides.
fn is_of_the_system(what: What, option: &str) -> bool {
    match option {
        "runtime-kernel" | "truthdb" | "node" | "console" => true,
        "kernel" | "splash" | "debug" => what == What::Disk,
        _ => false,
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

    fn check(arguments: &[&str], what: What) -> String {
        let (_, options) = parse(arguments).unwrap().unwrap();
        match options.check_for(what) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_option_that_is_given_is_listed() {
        for (arguments, name) in [
            (&["iso", "--kernel", "x"][..], "kernel"),
            (&["iso", "--runtime-kernel", "x"], "runtime-kernel"),
            (&["iso", "--truthdb", "x"], "truthdb"),
            (&["iso", "--node", "x"], "node"),
            (&["iso", "--console", "x"], "console"),
            (&["iso", "--installer", "x"], "installer"),
            (&["iso", "--runtime", "x"], "runtime"),
            (&["iso", "--splash", "x"], "splash"),
            (&["iso", "--profile", "x"], "profile"),
            (&["iso", "--sign-key", "x"], "sign-key"),
            (&["iso", "--sign-certificate", "x"], "sign-certificate"),
            (&["iso", "--debug"], "debug"),
            (&["iso", "--out", "x"], "out"),
            (&["disk", "--config", "x"], "config"),
            (&["disk", "--node-config", "x"], "node-config"),
            (&["disk", "--format", "raw"], "format"),
            (&["disk", "--size", "9000"], "size"),
        ] {
            let (_, options) = parse(arguments).unwrap().unwrap();
            assert_eq!(options.given(), [name]);
            let is_for_a_release = ["out", "sign-key", "sign-certificate"].contains(&name);
            let refused = check(arguments, What::Release);
            assert_eq!(refused.is_empty(), is_for_a_release, "{name}: {refused}");
            assert!(is_for_a_release || refused.contains(&format!("--{name}")));
        }
    }

    #[test]
    fn an_option_that_would_do_nothing_is_refused() {
        assert_eq!(check(&["iso", "--runtime-kernel", "x"], What::Iso), "");
        for what in [What::Runtime, What::Disk] {
            let said = check(&["any", "--runtime-kernel", "x"], what);
            assert!(said.contains("no use for --runtime-kernel"), "{said}");
        }
        let said = check(&["iso", "--size", "9000"], What::Iso);
        assert!(said.contains("no use for --size"), "{said}");
        let said = check(&["iso", "again"], What::Iso);
        assert!(said.contains("one word too many"), "{said}");
        let given = ["any", "--runtime", "r", "--kernel", "k"];
        assert_eq!(check(&given, What::Iso), "", "the installer's");
        assert!(check(&given, What::Disk).contains("leave one of them away"));
        let given = ["iso", "--runtime", "r", "--truthdb", "t"];
        assert!(check(&given, What::Iso).contains("leave one of them away"));
    }

    #[test]
    fn a_profile_is_for_programs_that_are_built() {
        let all = "--truthdb t --node n --console c";
        for (given, what, builds) in [
            ("", What::Iso, true),
            ("--truthdb t --node n", What::Runtime, true),
            (all, What::Runtime, false),
            (all, What::Disk, false),
            (all, What::Iso, true),
            ("--runtime r", What::Disk, false),
            // The installer.
            ("--runtime r", What::Iso, true),
            ("--runtime r --installer i", What::Iso, false),
        ] {
            let words = format!("any --profile fast {given}");
            let words: Vec<&str> = words.split_whitespace().collect();
            let said = check(&words, what);
            assert_eq!(said.is_empty(), builds, "{words:?} {what:?}: {said}");
            assert!(builds || said.contains("--profile"), "{said}");
        }
    }
}
