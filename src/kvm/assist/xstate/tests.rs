//! Extended state against the manual, on the fake, and beside the processor itself.

use proptest::prelude::*;

use super::*;
use crate::kvm::assist::Outcome;
use crate::kvm::assist::fake::{CODE, DATA, Fake, UNMAPPED, code};

/// What memory holds before an instruction stores to it.
const BEFORE: u8 = 0xee;
const FIP: usize = 8;

/// Bytes that are no two alike in a row.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|index| (index as u8).wrapping_mul(37) ^ seed)
        .collect()
}

/// x87, SSE and AVX state, all of it in use and none of it initial.
fn state(seed: u8) -> Area {
    let mut area = Area::initial();
    area.put(0, &[0x7f, 0x02, 0, 0x38, 0x80]);
    area.put(FIP, &pattern(16, seed));
    area.put(MXCSR, &0x1fa0_u32.to_le_bytes());
    area.put(32, &pattern(10, seed));
    area.put(160, &pattern(256, seed ^ 0x5a));
    area.put(576, &pattern(256, seed ^ 0xc3));
    area.set_in_use(X87 | SSE | AVX);
    area
}

/// A vCPU with [`state`], RSI and EDX:EAX set, and memory from DATA on filled.
fn fake(mask: u32) -> Fake {
    let mut fake = Fake::new();
    fake.xstate = state(1);
    fake.put(DATA, &[BEFORE; 4096]);
    ready(&mut fake, mask);
    fake
}

fn ready(fake: &mut Fake, mask: u32) {
    (fake.regs.rip, fake.regs.rsi) = (CODE, DATA);
    (fake.regs.rax, fake.regs.rdx) = (mask.into(), 0);
}

fn set_header(fake: &mut Fake, words: [u64; 8]) {
    let header: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    fake.put(DATA + 512, &header);
}

/// Puts `image` at DATA, with this header.
fn set_image(fake: &mut Fake, image: &Area, header: [u64; 8]) {
    fake.put(DATA, &image.0[..]);
    set_header(fake, header);
}

fn saved(fake: &Fake) -> [u8; 1024] {
    fake.bytes(DATA)
}

/// The components behind the legacy region lie where the processor says.
fn has_avx() -> bool {
    let has = is_x86_feature_detected!("avx");
    if !has {
        eprintln!("skipped: this processor has no AVX");
    }
    has
}

#[test]
fn wait_raises_pending_exceptions() {
    let wait = [0x9b];
    let mut fake = fake(0);
    fake.finish(&wait);
    // ES, with CR0.NE and without.
    fake.regs.rip = CODE;
    fake.xstate.put(2, &0x80_u16.to_le_bytes());
    fake.fault(&wait, Exception::MF);
    fake.sregs.cr0 &= !CR0_NE;
    fake.finish(&wait);
    // Only TS together with MP.
    fake.regs.rip = CODE;
    fake.sregs.cr0 |= CR0_TS;
    fake.fault(&wait, Exception::NM);
    fake.sregs.cr0 &= !CR0_MP;
    fake.finish(&wait);
}

#[test]
fn mxcsr_is_stored_and_loaded() {
    for (load, store) in [
        (code!("ldmxcsr [rsi + 8]"), code!("stmxcsr [rsi]")),
        (code!("vldmxcsr [rsi + 8]"), code!("vstmxcsr [rsi]")),
    ] {
        let mut fake = fake(0);
        fake.xstate.set_in_use(0);
        fake.put(DATA + 8, &0x9f80_u32.to_le_bytes());
        fake.finish(store);
        assert_eq!(fake.word(DATA), 0xeeee_eeee_0000_1fa0);
        ready(&mut fake, 0);
        fake.finish(load);
        assert_eq!(fake.xstate.mxcsr(), 0x9f80);
        // Else KVM would load the initial value.
        assert_eq!(fake.xstate.in_use(), SSE);
        ready(&mut fake, 0);
        fake.put(DATA + 8, &0x1_1f80_u32.to_le_bytes());
        fake.fault(load, Exception::gp(0));
        fake.regs.rsi = UNMAPPED;
        fake.fault(load, Exception::pf(0, UNMAPPED + 8));
        fake.fault(store, Exception::pf(2, UNMAPPED));
    }
}

#[test]
fn mxcsr_needs_what_the_manual_names() {
    let legacy = [code!("ldmxcsr [rsi]"), code!("stmxcsr [rsi]")];
    check_fxsr_conditions(&legacy);
    let vex = [code!("vldmxcsr [rsi]"), code!("vstmxcsr [rsi]")];
    check_xsave_conditions(&vex);
    for code in vex {
        let mut fake = fake(0);
        fake.sregs.cr0 |= CR0_TS;
        fake.xcr0 = X87 | SSE;
        fake.fault(code, Exception::UD);
    }
}

fn check_fxsr_conditions(codes: &[&[u8]]) {
    for code in codes {
        let mut fake = fake(7);
        fake.sregs.cr0 |= CR0_TS;
        fake.fault(code, Exception::NM);
        fake.sregs.cr0 |= CR0_EM;
        fake.fault(code, Exception::UD);
        fake.sregs.cr0 &= !CR0_EM;
        fake.sregs.cr4 &= !CR4_OSFXSR;
        fake.fault(code, Exception::UD);
    }
}

fn check_xsave_conditions(codes: &[&[u8]]) {
    for code in codes {
        let mut fake = fake(7);
        fake.sregs.cr0 |= CR0_TS;
        fake.fault(code, Exception::NM);
        fake.sregs.cr4 &= !CR4_OSXSAVE;
        fake.fault(code, Exception::UD);
    }
}

#[test]
fn fxsave_stores_x87_and_sse_and_no_more() {
    for (code, wide) in [
        (code!("fxsave64 [rsi]"), true),
        (code!("fxsave [rsi]"), false),
    ] {
        let mut fake = fake(0);
        fake.finish(code);
        let mut expected = state(1);
        narrow_pointers(&mut expected, wide);
        assert_eq!(saved(&fake)[..416], expected.0[..416]);
        assert_eq!(saved(&fake)[416..], [BEFORE; 608]);
        assert!(fake.xstate == state(1));
    }
}

#[test]
fn fxrstor_loads_x87_and_sse_and_no_more() {
    for (code, wide) in [
        (code!("fxrstor64 [rsi]"), true),
        (code!("fxrstor [rsi]"), false),
    ] {
        let mut fake = fake(0);
        fake.xstate.set_in_use(AVX);
        set_image(&mut fake, &state(2), [u64::MAX; 8]);
        // No part of the state, MXCSR_MASK is the processor's.
        fake.put(DATA + 28, &[0x55; 4]);
        fake.finish(code);
        let mut expected = state(2);
        expected.put(576, &pattern(256, 1 ^ 0xc3));
        narrow_pointers(&mut expected, wide);
        assert!(fake.xstate == expected);
        ready(&mut fake, 0);
        fake.put(DATA + 24, &0x1_1f80_u32.to_le_bytes());
        fake.fault(code, Exception::gp(0));
    }
}

#[test]
fn fxsave_and_fxrstor_need_what_the_manual_names() {
    let codes = [
        code!("fxsave [rsi]"),
        code!("fxsave64 [rsi]"),
        code!("fxrstor [rsi]"),
        code!("fxrstor64 [rsi]"),
    ];
    check_fxsr_conditions(&codes);
    for (index, code) in codes.into_iter().enumerate() {
        let mut fake = fake(0);
        fake.regs.rsi = DATA + 8;
        fake.fault(code, Exception::gp(0));
        // The last 16 bytes are not there.
        fake.regs.rsi = DATA + 0x1000 - 496;
        fake.set_page(DATA + 0x1000, 0);
        let write = if index < 2 { 2 } else { 0 };
        fake.fault(code, Exception::pf(write, DATA + 0x1000));
        assert_eq!(fake.bytes(DATA + 0x1000 - 496), [BEFORE; 496]);
    }
}

#[test]
fn xsave_stores_what_is_requested() {
    for (code, wide) in [
        (code!("xsave [rsi]"), false),
        (code!("xsave64 [rsi]"), true),
        (code!("xsaveopt [rsi]"), false),
        (code!("xsaveopt64 [rsi]"), true),
    ] {
        let mut fake = fake(3);
        // Bit 63 of EDX:EAX is no component, AVX in memory stays.
        fake.regs.rdx = 1 << 31;
        set_header(&mut fake, [AVX, 1, 2, 3, 4, 5, 6, 7]);
        fake.finish(code);
        let (mut expected, saved) = (state(1), saved(&fake));
        narrow_pointers(&mut expected, wide);
        assert_eq!(saved[..416], expected.0[..416]);
        assert_eq!(saved[416..512], [BEFORE; 96]);
        assert_eq!(u64_at(&saved[512..520]), X87 | SSE | AVX);
        assert_eq!((saved[520], saved[528], saved[568]), (1, 2, 7));
        assert_eq!(saved[576..], [BEFORE; 448]);
    }
}

#[test]
fn xsave_stores_avx_with_mxcsr() {
    if !has_avx() {
        return;
    }
    for code in [code!("xsave [rsi]"), code!("xsaveopt [rsi]")] {
        let mut fake = fake(4);
        set_header(&mut fake, [0; 8]);
        fake.finish(code);
        let (state, saved) = (state(1), saved(&fake));
        assert_eq!(saved[..24], [BEFORE; 24]);
        assert_eq!(saved[24..32], state.0[24..32]);
        assert_eq!(saved[32..512], [BEFORE; 480]);
        assert_eq!(u64_at(&saved[512..520]), AVX);
        assert_eq!(saved[576..832], state.0[576..832]);
        assert_eq!(saved[832..], [BEFORE; 192]);
    }
}

#[test]
fn xsave_stores_what_is_not_in_use_and_xsaveopt_does_not() {
    for (code, stored) in [
        (code!("xsave64 [rsi]"), true),
        (code!("xsaveopt64 [rsi]"), false),
    ] {
        let mut fake = fake(3);
        let mut state = Area::initial();
        state.set_in_use(AVX);
        fake.xstate = state.clone();
        set_header(&mut fake, [X87 | SSE, 0, 0, 0, 0, 0, 0, 0]);
        fake.finish(code);
        let saved = saved(&fake);
        assert_eq!(u64_at(&saved[512..520]), 0);
        assert_eq!(saved[24..32], state.0[24..32]);
        for range in [0..24, 32..416] {
            let untouched = vec![BEFORE; range.len()];
            let expected = if stored {
                &state.0[range.clone()]
            } else {
                &untouched[..]
            };
            assert_eq!(saved[range], *expected);
        }
    }
}

#[test]
fn xsavec_and_xsaves_compact_and_replace_the_header() {
    if !has_avx() {
        return;
    }
    for (code, wide) in [
        (code!("xsavec [rsi]"), false),
        (code!("xsavec64 [rsi]"), true),
        (code!("xsaves [rsi]"), false),
        (code!("xsaves64 [rsi]"), true),
    ] {
        let mut fake = fake(5);
        fake.finish(code);
        let (mut expected, found) = (state(1), saved(&fake));
        narrow_pointers(&mut expected, wide);
        assert_eq!(found[..24], expected.0[..24]);
        assert_eq!(found[24..32], [BEFORE; 8]);
        assert_eq!(found[32..160], expected.0[32..160]);
        assert_eq!(found[160..512], [BEFORE; 352]);
        assert_eq!(u64_at(&found[512..520]), X87 | AVX);
        assert_eq!(u64_at(&found[520..528]), COMPACTED | X87 | AVX);
        assert_eq!(found[576..832], expected.0[576..832]);
        // Nothing in use but MXCSR, which counts as SSE.
        ready(&mut fake, 7);
        fake.put(DATA, &[BEFORE; 1024]);
        fake.xstate = Area::initial();
        fake.xstate.put(MXCSR, &0x1fa0_u32.to_le_bytes());
        fake.finish(code);
        let found = saved(&fake);
        assert_eq!(u64_at(&found[512..520]), SSE);
        assert_eq!(u64_at(&found[520..528]), COMPACTED | 7);
        assert_eq!(found[..24], [BEFORE; 24]);
        assert_eq!(found[24..32], fake.xstate.0[24..32]);
        assert_eq!(found[160..416], [0; 256]);
        assert_eq!(found[576..], [BEFORE; 448]);
    }
}

/// A component behind AVX that this processor has: its number, size and offset.
fn later_component() -> Option<(u32, usize, usize)> {
    let found = [5, 9].into_iter().find_map(|component| {
        let place = &layout()[component as usize];
        (place.size > 0).then_some((component, place.size, place.offset))
    });
    if found.is_none() {
        eprintln!("skipped: this processor has no state behind AVX");
    }
    found
}

#[test]
fn a_component_moves_up_in_the_compacted_format() {
    let Some((component, size, standard)) = later_component() else {
        return;
    };
    let mask = 1 | 1 << component;
    let mut fake = fake(mask);
    fake.xcr0 |= u64::from(mask);
    set_header(&mut fake, [0; 8]);
    fake.xstate.put(standard, &pattern(size, 0x33));
    fake.xstate.set_in_use(mask.into());
    fake.finish(code!("xsavec [rsi]"));
    assert_eq!(saved(&fake)[576..576 + size], pattern(size, 0x33));
    // And back.
    ready(&mut fake, mask);
    fake.xstate.put(standard, &vec![0; size]);
    fake.finish(code!("xrstor [rsi]"));
    assert_eq!(*fake.xstate.bytes(standard, size), pattern(size, 0x33));
    // In the standard format it is where it always is.
    ready(&mut fake, mask);
    fake.put(DATA, &[0; 4096]);
    fake.finish(code!("xsave [rsi]"));
    let mut found = vec![0; size];
    let address = DATA + standard as u64;
    (&fake as &dyn Cpu)
        .read(address, &mut found)
        .expect("it is mapped");
    assert_eq!(found, pattern(size, 0x33));
}

const SAVES: [fn() -> &'static [u8]; 8] = [
    || code!("xsave [rsi]"),
    || code!("xsave64 [rsi]"),
    || code!("xsaveopt [rsi]"),
    || code!("xsaveopt64 [rsi]"),
    || code!("xsavec [rsi]"),
    || code!("xsavec64 [rsi]"),
    || code!("xsaves [rsi]"),
    || code!("xsaves64 [rsi]"),
];

const RESTORES: [fn() -> &'static [u8]; 4] = [
    || code!("xrstor [rsi]"),
    || code!("xrstor64 [rsi]"),
    || code!("xrstors [rsi]"),
    || code!("xrstors64 [rsi]"),
];

#[test]
fn the_xsave_family_needs_what_the_manual_names() {
    if !has_avx() {
        return;
    }
    for (index, code) in SAVES.iter().chain(&RESTORES).enumerate() {
        let code = code();
        check_xsave_conditions(&[code]);
        let mut fake = fake(7);
        fake.regs.rsi = DATA + 32;
        fake.fault(code, Exception::gp(0));
        // AVX state is on the next page, which is not there.
        fake.regs.rsi = DATA + 0x1000 - 576;
        let compacted = if index >= 10 { COMPACTED | 7 } else { 0 };
        let header: Vec<u8> = [7, compacted, 0, 0, 0, 0, 0, 0]
            .iter()
            .flat_map(|word: &u64| word.to_le_bytes())
            .collect();
        fake.put(DATA + 0x1000 - 576, &[0; 576]);
        fake.put(DATA + 0x1000 - 64, &header);
        fake.set_page(DATA + 0x1000, 0);
        let write = if index < 8 { 2 } else { 0 };
        fake.fault(code, Exception::pf(write, DATA + 0x1000));
        assert_eq!(fake.bytes(DATA + 0x1000 - 576), [0; 512]);
    }
}

#[test]
fn supervisor_forms_need_cpl_0_and_no_supervisor_state() {
    for code in [
        code!("xsaves [rsi]"),
        code!("xsaves64 [rsi]"),
        code!("xrstors [rsi]"),
        code!("xrstors64 [rsi]"),
    ] {
        let mut fake = fake(7).at_cpl(3);
        fake.fault(code, Exception::gp(0));
        let mut fake = fake.at_cpl(0);
        fake.xss = 1 << 11;
        fake.regs.rax |= 1 << 11;
        let Outcome::Unsupported(unsupported) = fake.run(code) else {
            panic!("KVM does not hand that state out");
        };
        assert!(unsupported.reason.contains("supervisor"), "{unsupported}");
    }
}

#[test]
fn xrstor_loads_initialises_and_leaves_alone() {
    for (index, code) in RESTORES.iter().enumerate() {
        let mut fake = fake(3);
        // x87 is there, SSE is not; AVX is not asked for.
        let format = if index < 2 { 0 } else { COMPACTED | 7 };
        set_image(&mut fake, &state(2), [X87 | AVX, format, 0, 0, 0, 0, 0, 0]);
        fake.finish(code());
        let mut expected = state(2);
        narrow_pointers(&mut expected, index % 2 == 1);
        assert_eq!(*fake.xstate.bytes(0, 24), expected.0[..24]);
        assert_eq!(*fake.xstate.bytes(32, 128), expected.0[32..160]);
        assert_eq!(*fake.xstate.bytes(160, 256), [0; 256]);
        assert_eq!(*fake.xstate.bytes(576, 256), state(1).0[576..832]);
        // The standard format brings MXCSR all the same, the compacted one initialises it.
        let (mxcsr, in_use) = if index < 2 {
            (0x1fa0, X87 | SSE | AVX)
        } else {
            (MXCSR_DEFAULT, X87 | AVX)
        };
        assert_eq!((fake.xstate.mxcsr(), fake.xstate.in_use()), (mxcsr, in_use));
        assert_eq!(*fake.xstate.bytes(MXCSR_MASK, 4), [0xff, 0xff, 0, 0]);
    }
}

#[test]
fn xrstor_initialises_x87_and_avx() {
    if !has_avx() {
        return;
    }
    let mut fake = fake(5);
    set_image(&mut fake, &state(2), [0; 8]);
    fake.put(DATA + MXCSR as u64, &0x3f80_u32.to_le_bytes());
    fake.finish(code!("xrstor64 [rsi]"));
    let initial = Area::initial();
    assert_eq!(*fake.xstate.bytes(0, 24), initial.0[..24]);
    assert_eq!(*fake.xstate.bytes(32, 128), initial.0[32..160]);
    assert_eq!(*fake.xstate.bytes(160, 256), state(1).0[160..416]);
    assert_eq!(*fake.xstate.bytes(576, 256), [0; 256]);
    // MXCSR goes with AVX as well.
    assert_eq!(fake.xstate.mxcsr(), 0x3f80);
    assert_eq!(fake.xstate.in_use(), SSE);
}

#[test]
fn xrstor_does_not_look_at_mxcsr_for_x87_alone() {
    let mut fake = fake(1);
    set_image(&mut fake, &state(2), [1, 0, 0, 0, 0, 0, 0, 0]);
    fake.put(DATA + MXCSR as u64, &[0xff; 4]);
    fake.finish(code!("xrstor [rsi]"));
    assert_eq!(fake.xstate.mxcsr(), 0x1fa0);
    ready(&mut fake, 2);
    fake.fault(code!("xrstor [rsi]"), Exception::gp(0));
    // In the compacted format it is not even read unless SSE state is there.
    set_header(&mut fake, [1, COMPACTED | 3, 0, 0, 0, 0, 0, 0]);
    fake.finish(code!("xrstor [rsi]"));
    assert_eq!(fake.xstate.mxcsr(), MXCSR_DEFAULT);
}

#[test]
fn xrstor_of_an_invalid_header_is_gp() {
    let standard = [
        // A component that XCR0 has not; XCOMP_BV; reserved bytes 16 to 23.
        [1 << 9, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 0, 1 << 63, 0, 0, 0, 0, 0],
    ];
    let compacted = [
        [0, COMPACTED | 1 << 9, 0, 0, 0, 0, 0, 0],
        [3, COMPACTED | 1, 0, 0, 0, 0, 0, 0],
        [1, COMPACTED | 3, 1, 0, 0, 0, 0, 0],
        [1, COMPACTED | 3, 0, 0, 0, 0, 0, 1 << 63],
    ];
    for (index, code) in RESTORES.iter().enumerate() {
        let code = code();
        let mut fake = fake(3);
        for header in standard.iter().chain(&compacted) {
            set_image(&mut fake, &state(2), *header);
            fake.fault(code, Exception::gp(0));
        }
        // The rest of a standard header is not looked at; XRSTORS wants the compacted format.
        set_header(&mut fake, [3, 0, 0, 1, 2, 3, 4, 5]);
        if index < 2 {
            fake.finish(code);
        } else {
            fake.fault(code, Exception::gp(0));
        }
    }
}

#[test]
fn outside_64_bit_mode_the_upper_registers_stay() {
    if !has_avx() {
        return;
    }
    let protected = || {
        let mut fake = Fake::protected();
        fake.xstate = state(1);
        fake.put(DATA, &[BEFORE; 4096]);
        ready(&mut fake, 7);
        fake
    };
    let mut fake = protected();
    fake.finish(code!(".code32\nfxsave [esi]"));
    assert_eq!(saved(&fake)[160..288], state(1).0[160..288]);
    assert_eq!(saved(&fake)[288..], [BEFORE; 736]);
    let mut fake = protected();
    set_header(&mut fake, [0; 8]);
    fake.finish(code!(".code32\nxsave [esi]"));
    assert_eq!(saved(&fake)[160..288], state(1).0[160..288]);
    assert_eq!(saved(&fake)[288..512], [BEFORE; 224]);
    assert_eq!(saved(&fake)[576..704], state(1).0[576..704]);
    assert_eq!(saved(&fake)[704..], [BEFORE; 320]);
    for (code, ymm_seed) in [
        (code!(".code32\nfxrstor [esi]"), 1),
        (code!(".code32\nxrstor [esi]"), 2),
    ] {
        let mut fake = protected();
        set_image(&mut fake, &state(2), [7, 0, 0, 0, 0, 0, 0, 0]);
        fake.finish(code);
        assert_eq!(*fake.xstate.bytes(160, 128), state(2).0[160..288]);
        assert_eq!(*fake.xstate.bytes(288, 128), state(1).0[288..416]);
        assert_eq!(*fake.xstate.bytes(576, 128), state(ymm_seed).0[576..704]);
        assert_eq!(*fake.xstate.bytes(704, 128), state(1).0[704..832]);
    }
}

#[test]
fn xgetbv_shows_xcr0_and_the_components_in_use() {
    let mut fake = fake(0).at_cpl(3);
    (fake.xcr0, fake.regs.rax, fake.regs.rdx) = (1 << 62 | 7, u64::MAX, u64::MAX);
    fake.finish(code!("xgetbv"));
    assert_eq!((fake.regs.rax, fake.regs.rdx), (7, 1 << 30));
    ready(&mut fake, 0);
    fake.regs.rcx = 0xffff_ffff_0000_0001;
    fake.xstate.set_in_use(SSE | 1 << 9);
    fake.finish(code!("xgetbv"));
    assert_eq!((fake.regs.rax, fake.regs.rdx), (SSE, 0));
    ready(&mut fake, 0);
    fake.regs.rcx = 2;
    fake.fault(code!("xgetbv"), Exception::gp(0));
    fake.sregs.cr4 &= !CR4_OSXSAVE;
    fake.fault(code!("xgetbv"), Exception::UD);
}

#[test]
fn xsetbv_sets_xcr0_at_cpl_0_to_what_a_processor_takes() {
    let mut fake = fake(3);
    fake.regs.rax |= u64::MAX << 32;
    fake.finish(code!("xsetbv"));
    assert_eq!(fake.xcr0, 3);
    for (rax, rdx, rcx) in [(5, 0, 0), (0, 0, 0), (7, 1, 0), (7, 0, 1)] {
        ready(&mut fake, rax);
        (fake.regs.rdx, fake.regs.rcx) = (rdx, rcx);
        fake.fault(code!("xsetbv"), Exception::gp(0));
    }
    ready(&mut fake, 7);
    fake.regs.rcx = 0;
    let mut fake = fake.at_cpl(3);
    fake.fault(code!("xsetbv"), Exception::gp(0));
    fake.sregs.cr4 &= !CR4_OSXSAVE;
    fake.fault(code!("xsetbv"), Exception::UD);
    assert_eq!(fake.xcr0, 3);
}

/// x87, SSE and AVX state in the standard format, at an alignment that XSAVE accepts.
#[derive(Clone)]
#[repr(align(64))]
struct Image([u8; 1024]);

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (start, line) in (0..).step_by(32).zip(self.0.chunks(32)) {
            if line.iter().any(|byte| *byte != 0) {
                writeln!(f, "{start:4}: {}", crate::kvm::assist::hex(line))?;
            }
        }
        Ok(())
    }
}

/// Any state that a processor could have stored, with any of it in use.
fn image() -> impl Strategy<Value = Image> {
    (
        prop::collection::vec(any::<u8>(), 1024),
        0u64..8,
        any::<u16>(),
    )
        .prop_map(|(bytes, in_use, mxcsr)| {
            let mut image = Image([0; 1024]);
            let bytes = bytes.as_slice();
            // All exceptions masked and none pending, so that nothing but data depends on them.
            let control = u16::from(bytes[1]) << 8 & 0xf00 | 0x7f;
            let status = u16::from(bytes[3]) << 8 & 0x7f00;
            image.0[..2].copy_from_slice(&control.to_le_bytes());
            image.0[2..4].copy_from_slice(&status.to_le_bytes());
            image.0[4] = bytes[4];
            image.0[24..26].copy_from_slice(&mxcsr.to_le_bytes());
            for register in (32..160).step_by(16) {
                image.0[register..register + 10].copy_from_slice(&bytes[register..register + 10]);
            }
            image.0[160..416].copy_from_slice(&bytes[160..416]);
            image.0[512..520].copy_from_slice(&in_use.to_le_bytes());
            image.0[576..832].copy_from_slice(&bytes[576..832]);
            image
        })
}

/// What the processor itself stores after it has loaded `first`, then `loaded` of `second`.
macro_rules! stored_here {
    ($store:literal, $first:expr, $second:expr, $loaded:expr, $stored:expr) => {{
        let mut own = Image([0; 1024]);
        let mut found = Image([0; 1024]);
        // SAFETY: the state is as before at the end, and all images are aligned and long enough
        // for the components that 7 names; the headers are valid.
        unsafe {
            std::arch::asm!(
                "mov eax, 7",
                "xsave64 [{own}]",
                "xrstor64 [{first}]",
                "mov eax, {loaded:e}",
                "xrstor64 [{second}]",
                "mov eax, {stored:e}",
                concat!($store, " [{found}]"),
                "mov eax, 7",
                "xrstor64 [{own}]",
                own = in(reg) own.0.as_mut_ptr(),
                first = in(reg) $first.0.as_ptr(),
                second = in(reg) $second.0.as_ptr(),
                found = in(reg) found.0.as_mut_ptr(),
                loaded = in(reg) $loaded,
                stored = in(reg) $stored,
                in("edx") 0,
                out("eax") _,
            );
        }
        found
    }};
}

/// The same by hull.
fn stored_by_fake(store: &[u8], first: &Image, second: &Image, loaded: u32, stored: u32) -> Image {
    let mut fake = Fake::new();
    for (image, mask) in [(first, 7), (second, loaded)] {
        fake.put(DATA, &image.0);
        ready(&mut fake, mask);
        fake.finish(code!("xrstor64 [rsi]"));
    }
    fake.put(DATA, &[0; 1024]);
    ready(&mut fake, stored);
    fake.finish(store);
    Image(fake.bytes(DATA))
}

/// The state that an image stands for: what is not in use is initial, whether it is stored or
/// not, and a processor may say that initial state is in use (Intel SDM 1, 13.6).
fn meaning(image: &Image, stored: u32) -> Image {
    let in_use = u64_at(&image.0[512..520]);
    let initial = Area::initial();
    let mut state = Image([0; 1024]);
    let mut take = |range: std::ops::Range<usize>, from_image: bool| {
        let from: &[u8] = if from_image { &image.0 } else { &initial.0[..] };
        state.0[range.clone()].copy_from_slice(&from[range]);
    };
    for (bit, range) in [
        (X87, 0..5),
        (X87, 32..160),
        (SSE, 160..416),
        (AVX, 576..832),
    ] {
        if u64::from(stored) & bit != 0 {
            take(range, in_use & bit != 0);
        }
    }
    let compacted = image.0[527] & 0x80 != 0;
    if stored & 6 != 0 {
        take(MXCSR..MXCSR + 4, !compacted || in_use & SSE != 0);
    }
    take(520..528, true);
    state
}

/// Whether the processor stores MXCSR with AVX state, as the manual says (Intel SDM 1, 13.7).
fn mxcsr_goes_with_avx() -> bool {
    let mut image = Image([0; 1024]);
    image.0[24..26].copy_from_slice(&[0x80, 0x1f]);
    let found = stored_here!("xsave64", image, image, 7, 4);
    let as_it_should = found.0[24..26] == image.0[24..26];
    if !as_it_should {
        eprintln!("left out: MXCSR with AVX state alone, which this processor forgets");
    }
    as_it_should
}

macro_rules! stored_like_the_processor {
    ($($name:ident, $feature:tt, $store:literal;)+) => {$(
        #[test]
        fn $name() {
            if !has_avx() {
                return;
            }
            if !is_x86_feature_detected!($feature) {
                eprintln!("left out: this processor has no {}", $feature);
                return;
            }
            let with_avx = mxcsr_goes_with_avx();
            let config = ProptestConfig { failure_persistence: None, ..Default::default() };
            let mut runner = proptest::test_runner::TestRunner::new_with_rng(
                config,
                proptest::test_runner::TestRng::deterministic_rng(Default::default()),
            );
            runner
                .run(&(image(), image(), 0u32..8, 0u32..8), |(first, second, loaded, stored)| {
                    prop_assume!(with_avx || loaded & 6 != 4 && stored & 6 != 4);
                    let theirs = stored_here!($store, first, second, loaded, stored);
                    let code = code!(concat!($store, " [rsi]"));
                    let ours = stored_by_fake(code, &first, &second, loaded, stored);
                    let (ours, theirs) = (meaning(&ours, stored), meaning(&theirs, stored));
                    prop_assert!(ours.0 == theirs.0, "{ours:?} is not the processor's\n{theirs:?}");
                    Ok(())
                })
                .unwrap_or_else(|error| panic!("{error}"));
        }
    )+};
}

stored_like_the_processor! {
    xrstor_and_xsave_like_the_processor, "xsave", "xsave64";
    xrstor_and_xsaveopt_like_the_processor, "xsaveopt", "xsaveopt64";
    xrstor_and_xsavec_like_the_processor, "xsavec", "xsavec64";
}
