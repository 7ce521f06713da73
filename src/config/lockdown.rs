//! Whether hull gives up its rights before a guest runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What hull does about rights that it does not need while a guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lockdown {
    /// Gives them up, as far as the host's kernel can take them.
    #[default]
    BestEffort,
    /// Gives them up, or does not run the guest.
    Required,
    /// Keeps them.
    Off,
}

impl Lockdown {
    /// All settings, in the order of the help.
    pub const ALL: [Self; 3] = [Self::BestEffort, Self::Required, Self::Off];
}

impl fmt::Display for Lockdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BestEffort => "best-effort",
            Self::Required => "required",
            Self::Off => "off",
        })
    }
}

impl FromStr for Lockdown {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|one| one.to_string() == text);
        found.ok_or_else(|| "lockdown is best-effort, required or off".into())
    }
}
