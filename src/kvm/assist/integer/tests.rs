//! Each instruction with values worked out from the manual, and beside the processor itself.

use proptest::prelude::*;

use super::*;
use crate::kvm::assist::fake::{
    Block, CODE, DATA, Fake, NO_RAM, NON_CANONICAL, Scratch, UNMAPPED, code, on_host,
};
use crate::kvm::assist::{Outcome, cpu::AC};

const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// A fake with RDX as given and all status flags set or clear.
fn with_rdx(rdx: u64, rflags: u64) -> Fake {
    let mut fake = Fake::new();
    fake.regs.rdx = rdx;
    fake.regs.rax = u64::MAX;
    fake.regs.rsi = DATA;
    fake.regs.rflags |= rflags;
    fake
}

fn status(fake: &Fake) -> u64 {
    fake.regs.rflags & STATUS
}

#[test]
fn popcnt_counts_and_clears_all_flags_but_zf() {
    let mut fake = with_rdx(0xf0f0_0000_0000_0001, STATUS);
    fake.finish(code!("popcnt rax, rdx"));
    assert_eq!((fake.regs.rax, status(&fake)), (9, 0));
    let mut fake = with_rdx(0xffff_0000_0000_0000, STATUS & !ZF);
    fake.finish(code!("popcnt eax, edx"));
    assert_eq!((fake.regs.rax, status(&fake)), (0, ZF));
    let mut fake = with_rdx(0x1_0007, 0);
    fake.finish(code!("popcnt ax, dx"));
    assert_eq!(fake.regs.rax, 0xffff_ffff_ffff_0003);
    let mut fake = with_rdx(0, 0);
    fake.put(DATA, &[0xff, 0, 0xff, 0, 0xff]);
    fake.finish(code!("popcnt eax, dword ptr [rsi]"));
    assert_eq!(fake.regs.rax, 16);
}

#[test]
fn lzcnt_and_tzcnt_of_zero_are_the_width_with_carry() {
    for (code, width) in [
        (code!("lzcnt eax, edx"), 32),
        (code!("tzcnt eax, edx"), 32),
        (code!("lzcnt rax, rdx"), 64),
        (code!("tzcnt rax, rdx"), 64),
        (code!("lzcnt ax, dx"), 0xffff_ffff_ffff_0010),
        (code!("tzcnt ax, dx"), 0xffff_ffff_ffff_0010),
    ] {
        let mut fake = with_rdx(0, ZF);
        fake.finish(code);
        assert_eq!((fake.regs.rax, status(&fake) & (CF | ZF)), (width, CF));
    }
    let mut fake = with_rdx(0x8000_0000, CF);
    fake.finish(code!("lzcnt eax, edx"));
    assert_eq!((fake.regs.rax, status(&fake) & (CF | ZF)), (0, ZF));
    let mut fake = with_rdx(0x8000_0000, CF);
    fake.finish(code!("tzcnt eax, edx"));
    assert_eq!((fake.regs.rax, status(&fake) & (CF | ZF)), (31, 0));
}

#[test]
fn movbe_swaps_both_ways_and_leaves_the_flags() {
    let mut fake = with_rdx(0, STATUS);
    fake.put(DATA, &[1, 2, 3, 4, 5, 6, 7, 8]);
    fake.finish(code!("movbe rax, [rsi]"));
    assert_eq!(fake.regs.rax, 0x0102_0304_0506_0708);
    fake.regs.rip = CODE;
    fake.finish(code!("movbe eax, [rsi]"));
    assert_eq!(fake.regs.rax, 0x0102_0304);
    fake.regs.rip = CODE;
    fake.regs.rax = u64::MAX;
    fake.finish(code!("movbe ax, [rsi]"));
    assert_eq!(fake.regs.rax, 0xffff_ffff_ffff_0102);
    fake.regs.rip = CODE;
    fake.regs.rax = 0x1122_3344;
    fake.finish(code!("movbe [rsi], eax"));
    assert_eq!(fake.bytes(DATA), [0x11, 0x22, 0x33, 0x44, 5, 6, 7, 8]);
    assert_eq!(status(&fake), STATUS);
}

#[test]
fn crc32_of_123456789_is_the_known_check_value() {
    let mut fake = with_rdx(0, STATUS);
    fake.regs.rax = 0xffff_ffff;
    for byte in b"123456789" {
        fake.regs.rip = CODE;
        fake.regs.rdx = u64::from(*byte);
        fake.finish(code!("crc32 eax, dl"));
    }
    assert_eq!(!(fake.regs.rax as u32), 0xe306_9283);
    assert_eq!(status(&fake), STATUS);
}

#[test]
fn andn_bextr_and_bzhi() {
    let mut fake = with_rdx(0xffff_0000, STATUS);
    fake.regs.rcx = 0x8234_5678_ffff_ffff;
    fake.finish(code!("andn rax, rdx, rcx"));
    assert_eq!(
        (fake.regs.rax, status(&fake)),
        (0x8234_5678_0000_ffff, SF | AF | PF)
    );
    let mut fake = with_rdx(0xabcd_ef12, 0);
    fake.regs.rcx = 0x0804;
    fake.finish(code!("bextr eax, edx, ecx"));
    assert_eq!((fake.regs.rax, status(&fake)), (0xf1, 0));
    let mut fake = with_rdx(0xabcd_ef12, 0);
    // A start beyond the operand.
    fake.regs.rcx = 0xff20;
    fake.finish(code!("bextr eax, edx, ecx"));
    assert_eq!((fake.regs.rax, status(&fake)), (0, ZF));
    let mut fake = with_rdx(0xabcd_ef12, 0);
    fake.regs.rcx = 8;
    fake.finish(code!("bzhi eax, edx, ecx"));
    assert_eq!((fake.regs.rax, status(&fake)), (0x12, 0));
    let mut fake = with_rdx(0x8bcd_ef12, 0);
    fake.regs.rcx = 32;
    fake.finish(code!("bzhi eax, edx, ecx"));
    assert_eq!((fake.regs.rax, status(&fake)), (0x8bcd_ef12, CF | SF));
}

#[test]
fn lowest_bit_instructions() {
    for (code, source, result, flags) in [
        (code!("blsi eax, edx"), 0xf0, 0x10, CF),
        (code!("blsi eax, edx"), 0, 0, ZF),
        (code!("blsi rax, rdx"), 1 << 63, 1 << 63, CF | SF),
        (code!("blsmsk eax, edx"), 0xf0, 0x1f, 0),
        (code!("blsmsk eax, edx"), 0, 0xffff_ffff, CF | SF),
        (code!("blsr eax, edx"), 0xf0, 0xe0, 0),
        (code!("blsr eax, edx"), 0, 0, CF | ZF),
        (code!("blsr rax, rdx"), 1 << 40, 0, ZF),
    ] {
        let mut fake = with_rdx(source, OF);
        fake.finish(code);
        assert_eq!((fake.regs.rax, status(&fake)), (result, flags), "{code:x?}");
    }
}

#[test]
fn shifts_rotates_and_scatters_without_flags() {
    for (code, source, count, result) in [
        (code!("shlx eax, edx, ecx"), 0x8000_0001u64, 33, 2u64),
        (code!("shrx rax, rdx, rcx"), 1 << 63, 63, 1),
        (code!("sarx eax, edx, ecx"), 0x8000_0000, 4, 0xf800_0000),
        (
            code!("sarx rax, rdx, rcx"),
            1 << 63,
            4,
            0xf800_0000_0000_0000,
        ),
        (code!("rorx eax, edx, 40"), 0x1234_5678, 0, 0x7812_3456),
        (code!("rorx rax, rdx, 8"), 0x12, 0, 0x12 << 56),
        (code!("pdep eax, edx, ecx"), 0b101, 0xf0f0, 0b0101_0000),
        (
            code!("pext eax, edx, ecx"),
            0x1234_5678,
            0xff00_fff0,
            0x12567,
        ),
    ] {
        let mut fake = with_rdx(source, STATUS);
        fake.regs.rcx = count;
        fake.finish(code);
        assert_eq!(
            (fake.regs.rax, status(&fake)),
            (result, STATUS),
            "{code:x?}"
        );
    }
}

#[test]
fn mulx_writes_both_halves_and_the_high_one_last() {
    let mut fake = with_rdx(u64::MAX, STATUS);
    fake.regs.rcx = u64::MAX;
    fake.finish(code!("mulx rax, rbx, rcx"));
    assert_eq!((fake.regs.rax, fake.regs.rbx), (u64::MAX - 1, 1));
    assert_eq!(status(&fake), STATUS);
    let mut fake = with_rdx(0xffff_ffff_0001_0000, 0);
    fake.regs.rcx = 0x5_0000;
    fake.finish(code!("mulx eax, eax, ecx"));
    assert_eq!(fake.regs.rax, 5);
}

#[test]
fn adcx_and_adox_each_have_their_own_carry() {
    let mut fake = with_rdx(0, CF | OF | ZF);
    fake.finish(code!("adcx rax, rdx"));
    assert_eq!((fake.regs.rax, status(&fake)), (0, CF | OF | ZF));
    fake.regs.rip = CODE;
    fake.finish(code!("adox eax, edx"));
    assert_eq!((fake.regs.rax, status(&fake)), (1, CF | ZF));
}

#[test]
fn compare_exchange_of_16_bytes() {
    let mut fake = with_rdx(2, STATUS & !ZF);
    fake.regs.rax = 1;
    fake.regs.rbx = 3;
    fake.regs.rcx = 4;
    fake.put(DATA, &(2u128 << 64 | 1).to_le_bytes());
    fake.finish(code!("lock cmpxchg16b [rsi]"));
    assert_eq!(u128::from_le_bytes(fake.bytes(DATA)), 4 << 64 | 3);
    assert_eq!(status(&fake), STATUS);
    fake.regs.rip = CODE;
    fake.finish(code!("cmpxchg16b [rsi]"));
    assert_eq!((fake.regs.rax, fake.regs.rdx), (3, 4));
    assert_eq!(status(&fake), STATUS & !ZF);
}

#[test]
fn compare_exchange_faults_before_it_does_anything() {
    let mut fake = with_rdx(0, 0);
    fake.regs.rsi = DATA + 8;
    fake.fault(code!("cmpxchg16b [rsi]"), Exception::gp(0));
    fake.regs.rsi = DATA;
    fake.set_page(DATA, 5);
    fake.fault(code!("cmpxchg16b [rsi]"), Exception::pf(3, DATA));
    fake.fault(code!("cmpxchg8b [rsi]"), Exception::pf(3, DATA));
    fake.set_page(DATA, 3);
    let mut fake = fake.at_cpl(3);
    fake.fault(code!("cmpxchg16b [rsi]"), Exception::pf(7, DATA));
}

#[test]
fn compare_exchange_of_8_bytes_may_straddle_pages() {
    let mut fake = with_rdx(2, 0);
    fake.regs.rsi = DATA + 0xffc;
    fake.regs.rax = 1;
    (fake.regs.rbx, fake.regs.rcx) = (5, 6);
    fake.put(DATA + 0xffc, &(2u64 << 32 | 1).to_le_bytes());
    fake.finish(code!("lock cmpxchg8b [rsi]"));
    assert_eq!(fake.word(DATA + 0xffc), 6 << 32 | 5);
    assert_eq!(status(&fake), ZF);
    // Half of it not there: nothing is written.
    fake.regs.rip = CODE;
    fake.set_page(DATA + 0x1000, 0);
    fake.fault(code!("cmpxchg8b [rsi]"), Exception::pf(2, DATA + 0x1000));
    assert_eq!(fake.word(DATA + 0xffc), 6 << 32 | 5);
}

#[test]
fn memory_operands_fault_with_registers_as_before() {
    let readers = [
        code!("popcnt rax, [rsi]"),
        code!("lzcnt eax, [rsi]"),
        code!("tzcnt ax, [rsi]"),
        code!("movbe rax, [rsi]"),
        code!("crc32 eax, byte ptr [rsi]"),
        code!("andn rax, rdx, [rsi]"),
        code!("bextr rax, [rsi], rdx"),
        code!("bzhi rax, [rsi], rdx"),
        code!("blsi rax, [rsi]"),
        code!("blsmsk rax, [rsi]"),
        code!("blsr rax, [rsi]"),
        code!("shlx rax, [rsi], rdx"),
        code!("shrx rax, [rsi], rdx"),
        code!("sarx rax, [rsi], rdx"),
        code!("rorx rax, [rsi], 3"),
        code!("pdep rax, rdx, [rsi]"),
        code!("pext rax, rdx, [rsi]"),
        code!("mulx rax, rbx, [rsi]"),
        code!("adcx rax, [rsi]"),
        code!("adox rax, [rsi]"),
    ];
    for code in readers {
        let mut fake = with_rdx(7, STATUS | AC);
        fake.regs.rsi = UNMAPPED;
        fake.fault(code, Exception::pf(0, UNMAPPED));
        fake.regs.rsi = NON_CANONICAL;
        fake.fault(code, Exception::gp(0));
        fake.regs.rsi = NO_RAM;
        let before = fake.regs;
        assert!(matches!(fake.run(code), Outcome::Unsupported(_)));
        assert_eq!(fake.regs, before);
    }
    let mut fake = with_rdx(7, 0);
    fake.regs.rsi = UNMAPPED;
    fake.fault(code!("movbe [rsi], rax"), Exception::pf(2, UNMAPPED));
    fake.regs.rsp = NON_CANONICAL;
    let stack_fault = Exception {
        vector: 12,
        ..Exception::gp(0)
    };
    fake.fault(code!("popcnt rax, [rsp + 8]"), stack_fault);
}

#[test]
fn segments_and_address_sizes_count() {
    let mut fake = with_rdx(0, 0);
    fake.put(DATA, &[0xff]);
    fake.sregs.gs.base = DATA;
    fake.sregs.ds.base = 0x5555;
    fake.regs.rsi = 0;
    fake.finish(code!("popcnt rax, gs:[rsi]"));
    assert_eq!(fake.regs.rax, 8);
    fake.regs.rip = CODE;
    fake.regs.rsi = 0xffff_ffff_0000_0000 | DATA;
    fake.finish(code!("popcnt rax, [esi]"));
    assert_eq!(fake.regs.rax, 8);
    let mut fake = Fake::protected();
    fake.put(DATA, &[0xff]);
    fake.sregs.ds.base = DATA + 1;
    fake.regs.rsi = 0xffff_ffff;
    fake.finish(code!(".code32\npopcnt eax, [esi]"));
    assert_eq!(fake.regs.rax, 8);
}

fn scratch() -> impl Strategy<Value = Scratch> {
    // Plain random numbers hardly ever are zero, all ones or a single bit.
    let value = || {
        prop_oneof![
            4 => any::<u64>(),
            1 => Just(0),
            1 => Just(u64::MAX),
            1 => (0u32..64).prop_map(|bit| 1 << bit),
            1 => any::<u64>().prop_map(|value| value & 0xffff),
        ]
    };
    (
        value(),
        value(),
        value(),
        value(),
        any::<u64>(),
        value(),
        value(),
    )
        .prop_map(|(rax, rbx, rcx, rdx, flags, low, high)| {
            let mut memory = Block([0; 64]);
            memory.0[..8].copy_from_slice(&low.to_le_bytes());
            memory.0[8..16].copy_from_slice(&high.to_le_bytes());
            let rflags = flags & STATUS | 0x202;
            Scratch {
                rax,
                rbx,
                rcx,
                rdx,
                rflags,
                memory,
            }
        })
}

/// Whether the processor does what the manual says, where QEMU's (7.2) does not.
fn as_the_manual_says(assembly: &str) -> bool {
    let zeros = Scratch {
        rax: 0,
        rbx: 0,
        rcx: 0,
        rdx: 0,
        rflags: 0x202,
        memory: Block([0; 64]),
    };
    let rdx = |rdx| Scratch {
        rdx,
        ..zeros.clone()
    };
    let carry = match assembly.split_once(' ') {
        // CF: the source is not zero.
        Some(("blsi", _)) => on_host!(zeros, "blsi rax, rdx").rflags & CF,
        // CF or OF: a carry out of 32 bits, of which neither operand has any.
        Some(("adcx", operands)) if operands.starts_with("eax") => {
            on_host!(rdx(1 << 32), "adcx eax, edx").rflags & CF
        }
        Some(("adox", operands)) if operands.starts_with("eax") => {
            on_host!(rdx(1 << 32), "adox eax, edx").rflags & OF
        }
        _ => 0,
    };
    carry == 0
}

/// A test that gives random values to the processor and to the fake; `$undefined` are the flags
/// the manual leaves open.
macro_rules! like_the_processor {
    ($($name:ident, $feature:tt, $undefined:expr, [$($assembly:literal),+ $(,)?];)+) => {$(
        #[test]
        fn $name() {
            if !std::arch::is_x86_feature_detected!($feature) {
                eprintln!("left out: this processor has no {}", $feature);
                return;
            }
            for assembly in [$($assembly),+] {
                if !as_the_manual_says(assembly) {
                    eprintln!("left out: this processor's `{assembly}` has a wrong carry");
                }
            }
            let mut runner = proptest::test_runner::TestRunner::deterministic();
            let fake = std::cell::RefCell::new(Fake::new());
            runner
                .run(&scratch(), |before| {
                    $(if as_the_manual_says($assembly) {
                        let mut theirs = on_host!(before, $assembly);
                        let mut ours = before.on_fake(&mut fake.borrow_mut(), code!($assembly));
                        ours.rflags &= STATUS & !$undefined;
                        theirs.rflags &= STATUS & !$undefined;
                        prop_assert_eq!(ours, theirs, "{}", $assembly);
                    })+
                    Ok(())
                })
                .unwrap_or_else(|error| panic!("{error}"));
        }
    )+};
}

like_the_processor! {
    popcnt_like_the_processor, "popcnt", 0, [
        "popcnt rax, rdx", "popcnt eax, edx", "popcnt ax, dx",
        "popcnt rax, [rsi]", "popcnt eax, [rsi]", "popcnt ax, [rsi]",
    ];
    lzcnt_like_the_processor, "lzcnt", (OF | SF | PF | AF), [
        "lzcnt rax, rdx", "lzcnt eax, edx", "lzcnt ax, dx", "lzcnt eax, [rsi + 4]",
    ];
    tzcnt_like_the_processor, "bmi1", (OF | SF | PF | AF), [
        "tzcnt rax, rdx", "tzcnt eax, edx", "tzcnt ax, dx", "tzcnt rax, [rsi + 4]",
    ];
    movbe_like_the_processor, "movbe", 0, [
        "movbe rax, [rsi]", "movbe eax, [rsi]", "movbe ax, [rsi]",
        "movbe [rsi + 1], rax", "movbe [rsi + 1], eax", "movbe [rsi + 1], ax",
    ];
    crc32_like_the_processor, "sse4.2", 0, [
        "crc32 eax, dl", "crc32 eax, dh", "crc32 eax, dx", "crc32 eax, edx", "crc32 rax, rdx",
        "crc32 rax, dl", "crc32 eax, word ptr [rsi]", "crc32 rax, qword ptr [rsi]",
    ];
    bmi1_like_the_processor, "bmi1", (AF | PF), [
        "andn rax, rdx, rcx", "andn eax, edx, [rsi]", "blsi rax, rdx", "blsi eax, [rsi]",
        "blsmsk rax, rdx", "blsmsk eax, edx", "blsr rax, [rsi]", "blsr eax, edx",
    ];
    bextr_like_the_processor, "bmi1", (AF | PF | SF), [
        "bextr rax, rdx, rcx", "bextr eax, edx, ecx", "bextr rax, [rsi], rcx",
    ];
    bzhi_like_the_processor, "bmi2", (AF | PF), [
        "bzhi rax, rdx, rcx", "bzhi eax, edx, ecx", "bzhi eax, [rsi], ecx",
    ];
    bmi2_like_the_processor, "bmi2", 0, [
        "shlx rax, rdx, rcx", "shlx eax, edx, ecx", "shrx rax, [rsi], rcx", "shrx eax, edx, ecx",
        "sarx rax, rdx, rcx", "sarx eax, edx, ecx", "rorx rax, rdx, 77", "rorx eax, [rsi], 45",
        "pdep rax, rdx, rcx", "pdep eax, edx, [rsi]", "pext rax, rdx, [rsi]", "pext eax, edx, ecx",
    ];
    mulx_like_the_processor, "bmi2", 0, [
        "mulx rax, rbx, rcx", "mulx eax, ebx, ecx", "mulx rax, rax, [rsi]", "mulx edx, eax, edx",
    ];
    adx_like_the_processor, "adx", 0, [
        "adcx rax, rdx", "adcx eax, edx", "adcx eax, [rsi]",
        "adox rax, rdx", "adox eax, edx", "adox rax, [rsi]",
    ];
    compare_exchange_like_the_processor, "cmpxchg16b", 0, [
        "lock cmpxchg16b [rsi]", "cmpxchg16b [rsi]", "lock cmpxchg8b [rsi]",
        "cmpxchg8b [rsi + 4]",
    ];
}
