//! `sandforge completions`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::failure::Failure;

/// Print a script that completes this command line in a shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  bash  sandforge completions bash > ~/.local/share/bash-completion/completions/sandforge
  zsh   sandforge completions zsh > ~/.zfunc/_sandforge    (with ~/.zfunc in fpath)
  fish  sandforge completions fish > ~/.config/fish/completions/sandforge.fish")]
pub(crate) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

impl CompletionsArgs {
    pub(crate) fn run(&self) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "sandforge", &mut script);
        super::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
