//! Coding agents that are known by name: what each needs, and how it gets there.

mod install;

pub(crate) use install::install;

use std::ffi::OsString;

use crate::failure::Failure;
use crate::task::Words;

/// Memory for an agent and its program, which is in the sandbox's memory too.
pub(crate) const MEMORY_MB: u32 = 3072;

/// A coding agent.
#[derive(Debug)]
pub(crate) struct CodingAgent {
    /// What its users call it.
    pub(crate) name: &'static str,
    /// Its set of rules and credentials.
    pub(crate) profile: &'static str,
    /// Where it comes from. None where it has to be in the image.
    package: Option<Package>,
}

/// A package of the npm registry that names one for each platform, whose program needs nothing else.
#[derive(Debug)]
struct Package {
    name: &'static str,
    /// How the ones for the platforms are called, but for the platform.
    platform: &'static str,
    /// What of it nobody needs in a sandbox.
    left_out: &'static str,
    /// Starts its program.
    start: &'static str,
}

const KNOWN: [CodingAgent; 4] = [
    CodingAgent {
        name: "claude",
        profile: "claude-code",
        package: Some(Package {
            name: "@anthropic-ai/claude-code",
            platform: "@anthropic-ai/claude-code-linux-",
            left_out: "",
            start: include_str!("claude.sh"),
        }),
    },
    CodingAgent {
        name: "codex",
        profile: "codex",
        package: Some(Package {
            name: "@openai/codex",
            platform: "@openai/codex-linux-",
            left_out: "*/codex-resources/voice",
            start: include_str!("codex.sh"),
        }),
    },
    CodingAgent {
        name: "opencode",
        profile: "opencode",
        package: Some(Package {
            name: "opencode-ai",
            platform: "opencode-linux-",
            left_out: "",
            start: include_str!("opencode.sh"),
        }),
    },
    CodingAgent { name: "pi", profile: "pi", package: None },
];

/// One that was asked for, with what it is to be told.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) agent: &'static CodingAgent,
    /// The version; the one that is there when absent.
    version: Option<String>,
    arguments: Vec<OsString>,
}

impl Asked {
    /// The agent that a command line names first: `claude`, or `claude@VERSION`. Behind `--` nothing
    /// is interpreted.
    pub(crate) fn by(words: &Words) -> Option<Self> {
        let (first, rest) = words.command.split_first()?;
        let first = first.to_str().filter(|_| !words.separated)?;
        let (name, version) = match first.split_once('@') {
            Some((name, version)) => (name, Some(version.to_owned())),
            None => (first, None),
        };
        let agent = KNOWN.iter().find(|agent| agent.name == name)?;
        let rest = match rest {
            [dashes, rest @ ..] if dashes == "--" => rest,
            rest => rest,
        };
        Some(Self { agent, version, arguments: rest.to_vec() })
    }

    /// Whether it is brought along, or has to be in the image.
    ///
    /// # Errors
    /// It cannot be brought along.
    pub(crate) fn is_brought(&self, has_image: bool) -> Result<bool, Failure> {
        let name = self.agent.name;
        match (&self.agent.package, has_image) {
            (_, true) if self.version.is_some() => {
                Err(Failure::usage(format!("{name} is the one of the image, whose version it is"))
                    .help("leave --image out, or the version"))
            }
            (_, true) => Ok(false),
            (None, false) => {
                let problem = format!("{name} needs Node.js, which the image `base` does not have");
                Err(Failure::usage(problem)
                    .help(format!("name an image that has {name}: --image NAME|PATH")))
            }
            (Some(_), false) => Ok(true),
        }
    }

    /// Where it is put in a sandbox.
    pub(crate) fn place(&self) -> String {
        format!("/agents/{}", self.agent.name)
    }

    /// The command that it is.
    pub(crate) fn command(&self, is_brought: bool) -> Vec<OsString> {
        let name = self.agent.name;
        let program = match is_brought {
            true => format!("{}/bin/{name}", self.place()),
            false => name.to_owned(),
        };
        std::iter::once(program.into()).chain(self.arguments.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str], separated: bool) -> Option<Asked> {
        let command = words.iter().map(OsString::from).collect();
        Asked::by(&Words { command, separated })
    }

    #[test]
    fn the_first_word_names_the_agent_and_the_rest_is_for_it() {
        let claude = asked(&["claude", "--", "-p", "fix it"], false).unwrap();
        assert_eq!(claude.command(true), ["/agents/claude/bin/claude", "-p", "fix it"]);
        let codex = asked(&["codex", "exec", "--", "x"], false).unwrap();
        assert_eq!(codex.command(false), ["codex", "exec", "--", "x"]);
        let version = asked(&["opencode@1.2.3"], false).unwrap().version;
        assert_eq!(version.as_deref(), Some("1.2.3"));
    }

    #[test]
    fn a_command_of_that_name_is_behind_two_dashes() {
        assert!(asked(&["claude"], true).is_none());
        assert!(asked(&["claude -p hello"], false).is_none());
        assert!(asked(&["claudette"], false).is_none());
        assert!(asked(&["cat", "claude"], false).is_none());
    }

    #[test]
    fn what_cannot_be_brought_along_says_what_to_do() {
        let pi = asked(&["pi"], false).unwrap();
        assert!(pi.is_brought(false).unwrap_err().help.unwrap().contains("--image"));
        assert!(!pi.is_brought(true).unwrap());
        assert!(asked(&["claude@1.0.0"], false).unwrap().is_brought(true).is_err());
    }

    #[test]
    fn every_agent_has_a_profile_that_there_is() {
        for agent in &KNOWN {
            assert!(fleet::profile_names().any(|name| name == agent.profile), "{}", agent.name);
        }
    }
}
