use super::*;
use crate::cli::table::Table;
use crate::inspect::Hex;
use crate::inspect::map::{Kind, Memory};
use crate::inspect::pages::{Level, Walk};

#[test]
fn columns_are_aligned_and_long_words_go_on_below() {
    let mut table = Table::indented(2);
    table.row(["a", "wide", "first"]);
    table.row(["longer", "b", ""]);
    let long = ["word"; 30].join(" ");
    table.row(["c".to_string(), "d".to_string(), long]);
    let below = " ".repeat(16);
    let expected = format!(
        "  a       wide  first\n  longer  b\n  c       d     {}\n{below}{}\n",
        ["word"; 17].join(" "),
        ["word"; 13].join(" "),
    );
    assert_eq!(table.draw(), expected);
}

#[test]
fn the_memory_map_is_a_picture_from_top_to_bottom() {
    let known = [(0x8000..0x8012, Kind::Loaded, "flat payload".to_string())];
    let ram = std::slice::from_ref(&(0..0x20_0000));
    let map = Memory::new(ram, &known, |_| 0x1000, 0x40_0000);
    let expected = "\
2 MiB of RAM, 12 KiB of it resident on the host

        400000 +------------+
               |            | nothing (2 MiB)
        200000 +------------+
               |############| RAM (1.9 MiB, 4 KiB resident)
          8012 +------------+
               |::::::::::::| flat payload (18 B, 4 KiB resident)
          8000 +------------+
               |############| RAM (32 KiB, 4 KiB resident)
             0 +------------+

## RAM   :: put there by hull before the first instruction   == a device's registers
";
    assert_eq!(memory::draw(&map), expected);
}

#[test]
fn a_walk_is_a_level_a_line() {
    let walk = Walk {
        vcpu: 0,
        address: Hex(0x1234),
        symbol: None,
        mode: "4-level paging".into(),
        cr3: Hex(0x9000),
        levels: vec![Level {
            table: "PML4".into(),
            index: 0,
            gpa: Hex(0x9000),
            entry: Hex(0),
            flags: String::new(),
            target: Hex(0),
        }],
        gpa: None,
        page_size: None,
        what: None,
        end: "not mapped: the entry of the PML4 is not present".into(),
    };
    let expected = "\
vCPU 0: 0x1234, 4-level paging, CR3 0x9000
  table  index  entry at  entry             points to  flags
  PML4   0x000  0x9000    0000000000000000  0x0
  not mapped: the entry of the PML4 is not present
";
    assert_eq!(pages::draw(&walk), expected);
}
