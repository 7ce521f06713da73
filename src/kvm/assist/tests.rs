//! The way from bytes to an outcome: decoding, fetching, faults, counts, and whatever a guest
//! may put there.

use iced_x86::Mnemonic;
use proptest::prelude::*;

use super::cpu::RF;
use super::fake::{CODE, DATA, Fake, MEMORY_SIZE, NO_RAM, UNMAPPED, code};
use super::*;

#[test]
fn without_reported_bytes_they_are_fetched() {
    let mut fake = Fake::new();
    fake.regs.rdx = 0xff;
    fake.put(CODE, code!("popcnt rax, rdx"));
    assert_eq!(fake.run(&[]), Outcome::Finished(Mnemonic::Popcnt));
    assert_eq!((fake.regs.rax, fake.regs.rip), (8, CODE + 5));
}

#[test]
fn an_instruction_reported_in_part_is_fetched() {
    let mut fake = Fake::new();
    fake.regs.rip = CODE + 0xffd;
    fake.regs.rdx = 0xff;
    let code = code!("popcnt rax, rdx");
    fake.put(CODE + 0xffd, code);
    assert_eq!(fake.run(&code[..3]), Outcome::Finished(Mnemonic::Popcnt));
    assert_eq!((fake.regs.rax, fake.regs.rip), (8, CODE + 0x1002));
}

#[test]
fn code_is_fetched_by_cs_base_outside_64_bit_mode() {
    let mut fake = Fake::protected();
    fake.sregs.cs.base = DATA;
    fake.regs.rip = 4;
    fake.regs.rdx = 3;
    fake.put(DATA + 4, code!(".code32\npopcnt eax, edx"));
    assert_eq!(fake.run(&[]), Outcome::Finished(Mnemonic::Popcnt));
    assert_eq!((fake.regs.rax, fake.regs.rip), (2, 8));
}

#[test]
fn unmapped_code_faults_on_fetch() {
    let mut fake = Fake::new();
    fake.sregs.efer |= 1 << 11;
    fake.regs.rip = UNMAPPED;
    fake.fault(&[], Exception::pf(0x10, UNMAPPED));
    fake.regs.rip = CODE + 0xffd;
    fake.put(CODE + 0xffd, &code!("popcnt rax, rdx")[..3]);
    fake.set_page(CODE + 0x1000, 0);
    fake.fault(&[], Exception::pf(0x10, CODE + 0x1000));
    fake.regs.rip = NO_RAM;
    let Outcome::Unsupported(unsupported) = fake.run(&[]) else {
        panic!("there is no code to finish");
    };
    assert!(unsupported.reason.contains("no RAM"), "{unsupported}");
}

#[test]
fn lock_on_an_instruction_without_it_is_ud() {
    let mut fake = Fake::new();
    fake.regs.rsi = DATA;
    for code in [
        code!("popcnt rax, [rsi]"),
        code!("movbe [rsi], eax"),
        code!("xsave [rsi]"),
        code!("xrstor [rsi]"),
        code!("fxsave [rsi]"),
        code!("stac"),
        code!("rdfsbase rax"),
        code!("int 0x80"),
        code!("adcx eax, edx"),
    ] {
        let locked: Vec<u8> = std::iter::once(0xf0).chain(code.iter().copied()).collect();
        fake.fault(&locked, Exception::UD);
    }
    // CMPXCHG16B with a register.
    fake.fault(&[0xf0, 0x48, 0x0f, 0xc7, 0xc8], Exception::UD);
}

#[test]
fn instructions_longer_than_15_bytes_are_gp() {
    let mut fake = Fake::new();
    fake.fault(&[0x66; 15], Exception::gp(0));
    fake.put(CODE, &[0x66; 16]);
    fake.fault(&[], Exception::gp(0));
}

#[test]
fn an_unknown_instruction_is_named_in_the_error() {
    let mut fake = Fake::new();
    let Outcome::Unsupported(unsupported) = fake.run(code!("paddd xmm1, xmm2")) else {
        panic!("hull does no SSE arithmetic");
    };
    assert_eq!(
        unsupported.to_string(),
        "the guest stopped at 0x8000: `paddd xmm1,xmm2` (66 0f fe ca) at CPL 0 cannot be \
         finished, it is not among the instructions hull knows"
    );
    assert_eq!(fake.regs.rip, CODE);
}

#[test]
fn a_finished_instruction_clears_rf_and_a_fault_does_not() {
    let mut fake = Fake::new();
    fake.regs.rflags |= RF;
    fake.fault(code!("popcnt rax, [0x200000]"), Exception::pf(0, UNMAPPED));
    fake.finish(code!("popcnt rax, rdx"));
    assert_eq!(fake.regs.rflags & RF, 0);
}

#[test]
fn rip_wraps_at_32_bits_outside_64_bit_mode() {
    let mut fake = Fake::protected();
    fake.regs.rip = 0xffff_ffff;
    fake.run(code!(".code32\nstac"));
    assert_eq!(fake.regs.rip, 2);
}

#[test]
fn counts_name_what_occurred() {
    let mut counts = Counts::default();
    counts.add(Mnemonic::Int3);
    counts.add(Mnemonic::Xsave);
    counts.add(Mnemonic::Xsave);
    counts.add(Mnemonic::INVALID);
    let mut all = counts.clone();
    all.merge(&counts);
    let listed: Vec<_> = all.instructions().collect();
    assert_eq!(listed, [("int3", 2), ("xsave", 4)]);
    assert_eq!(all.total(), 6);
}

#[test]
fn rows_are_unique_and_named_as_by_the_assembler() {
    for (index, row) in TABLE.iter().enumerate() {
        let name = format!("{:?}", row.mnemonic).to_lowercase();
        assert_eq!(name, row.name);
        assert!(
            TABLE[..index]
                .iter()
                .all(|other| other.mnemonic != row.mnemonic)
        );
    }
}

/// Openings of the instructions in the table, so that random bytes meet them.
fn opening() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![]),
        Just(vec![0x0f, 0xae]),
        Just(vec![0x48, 0x0f, 0xae]),
        Just(vec![0xf3, 0x48, 0x0f, 0xae]),
        Just(vec![0x0f, 0xc7]),
        Just(vec![0x48, 0x0f, 0xc7]),
        Just(vec![0xf3, 0x0f, 0xb8]),
        Just(vec![0xf2, 0x48, 0x0f, 0x38, 0xf1]),
        Just(vec![0x0f, 0x38, 0xf0]),
        Just(vec![0x66, 0x0f, 0x38, 0xf6]),
        Just(vec![0xc4, 0xe2]),
        Just(vec![0xc4, 0xe3]),
        Just(vec![0x0f, 0x01]),
        Just(vec![0xcd]),
    ]
}

fn machine() -> impl Strategy<Value = Fake> {
    let address = || {
        prop_oneof![
            any::<u64>(),
            0..2 * MEMORY_SIZE,
            Just(DATA),
            MEMORY_SIZE - 64..MEMORY_SIZE + 64
        ]
    };
    (
        prop::array::uniform16(address()),
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()),
        (0u16..4, any::<bool>(), any::<bool>()),
        prop_oneof![3 => Just(0x1000), 1 => any::<u64>()],
        prop::array::uniform32(any::<u64>()),
    )
        .prop_map(
            |(regs, (rflags, cr0, cr4, efer), (cpl, long, db), cr3, data)| {
                let mut fake = Fake::new().at_cpl(cpl);
                let [
                    rax,
                    rbx,
                    rcx,
                    rdx,
                    rsi,
                    rdi,
                    rsp,
                    rbp,
                    r8,
                    r9,
                    r10,
                    r11,
                    r12,
                    r13,
                    r14,
                    rip,
                ] = regs;
                fake.regs = kvm_bindings::kvm_regs {
                    rax,
                    rbx,
                    rcx,
                    rdx,
                    rsi,
                    rdi,
                    rsp,
                    rbp,
                    r8,
                    r9,
                    r10,
                    r11,
                    r12,
                    r13,
                    r14,
                    r15: DATA,
                    rip,
                    rflags,
                };
                if !long {
                    fake.sregs.cr0 = cr0;
                    fake.sregs.cr4 = cr4;
                    fake.sregs.efer = efer;
                    fake.sregs.cs.db = u8::from(db);
                    fake.sregs.cs.l = u8::from(!db);
                }
                fake.sregs.cr3 = cr3;
                let data: Vec<u8> = data.iter().flat_map(|word| word.to_le_bytes()).collect();
                fake.put(DATA, &data);
                fake.put(DATA + 512, &data);
                fake
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn decoding_any_bytes_with_any_registers_terminates(
        opening in opening(),
        rest in prop::array::uniform15(any::<u8>()),
        known in 0usize..=15,
        mut fake in machine(),
    ) {
        let mut bytes = opening;
        bytes.extend(rest);
        bytes.truncate(15);
        let before = fake.regs;
        match fake.run(&bytes[..known]) {
            Outcome::Finished(_) | Outcome::Trap(..) | Outcome::Interrupt(..) => {
                prop_assert_ne!(fake.regs.rip, before.rip);
            }
            Outcome::Fault(..) => prop_assert_eq!(fake.regs, before),
            Outcome::Unsupported(unsupported) => {
                prop_assert_eq!(fake.regs, before);
                prop_assert!(!unsupported.to_string().is_empty());
            }
        }
    }
}
