//! Values of flags that are words of a fixed list, as clap takes them.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::boot::Via;
use crate::config::{Console, Fault};

impl ValueEnum for Fault {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl ValueEnum for Via {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Pvh, Self::Guest]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.to_string()))
    }
}

impl ValueEnum for Console {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Serial, Self::Virtio]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.to_string()))
    }
}
