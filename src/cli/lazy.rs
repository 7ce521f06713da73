//! A verb's flags, defined when the verb is used, and with them the flags of the log.

use clap::{ArgMatches, Args, Command, FromArgMatches};

use super::logger;

/// The flags of a verb, which clap builds only when the verb is used: building dozens of flags with
/// their texts takes longer than a restore. For the same reason the flags of the log are each verb's
/// own, not clap's global ones, of which each verb gets a copy at once.
pub struct Lazy<T> {
    flags: T,
    log: logger::Flags,
}

impl<T> Lazy<T> {
    /// Install the logger; the verb's flags. `log` are the flags before the verb.
    pub fn start(self, log: logger::Flags) -> anyhow::Result<T> {
        self.log.or(log).install()?;
        Ok(self.flags)
    }
}

impl<T: Args> FromArgMatches for Lazy<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            flags: T::from_arg_matches(matches)?,
            log: logger::Flags::from_arg_matches(matches)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.flags.update_from_arg_matches(matches)?;
        self.log.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Lazy<T> {
    fn augment_args(verb: Command) -> Command {
        verb.defer(Self::define)
    }

    fn augment_args_for_update(verb: Command) -> Command {
        Self::augment_args(verb)
    }
}

impl<T: Args> Lazy<T> {
    /// The verb's description is that of the list of verbs, not that of the flags.
    fn define(verb: Command) -> Command {
        let about = verb.get_about().cloned();
        let verb = logger::Flags::augment_args(T::augment_args(verb));
        match about {
            Some(about) => verb.about(about).long_about(None),
            None => verb,
        }
    }
}
