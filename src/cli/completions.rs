//! `hull completions`: what a shell needs to complete hull's verbs and flags.

use clap::{Command, ValueEnum};
use clap_complete::{generate, shells};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull completions bash > ~/.local/share/bash-completion/completions/hull
  hull completions zsh > ~/.zfunc/_hull      with ~/.zfunc in fpath
  hull completions fish > ~/.config/fish/completions/hull.fish")]
pub struct Completions {
    /// The shell that is to read it.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    /// Print the script for `hull`.
    pub fn execute(self, mut hull: Command) -> anyhow::Result<()> {
        let mut script = Vec::new();
        match self.shell {
            Shell::Bash => generate(shells::Bash, &mut hull, "hull", &mut script),
            Shell::Zsh => generate(shells::Zsh, &mut hull, "hull", &mut script),
            Shell::Fish => generate(shells::Fish, &mut hull, "hull", &mut script),
        }
        super::output::print(&script)
    }
}
