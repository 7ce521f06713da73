//! Values of flags that are words of a fixed list, as clap takes them.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::boot::Via;
use crate::config::{Console, Fault, Lockdown};

macro_rules! value_enum {
    ($type:ty, $variants:expr) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &$variants
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(PossibleValue::new(self.to_string()))
            }
        }
    };
}
value_enum!(Fault, Fault::ALL);
value_enum!(Via, [Self::Auto, Self::Pvh, Self::Guest]);
value_enum!(Lockdown, Lockdown::ALL);
value_enum!(Console, [Self::Serial, Self::Virtio]);
