//! Gates, AC, segment bases and TSC_AUX against the manual.

use super::*;
use crate::kvm::assist::Outcome;
use crate::kvm::assist::fake::{CODE, DATA, Fake, IDT, NON_CANONICAL, UNMAPPED, code};

const GATE: u8 = 0x8e;
const USER_GATE: u8 = 0xee;

#[test]
fn int3_is_a_trap_with_rip_after_it() {
    let mut fake = Fake::new();
    fake.set_gate(3, GATE);
    assert!(matches!(fake.run(code!("int3")), Outcome::Trap(_, 3)));
    assert_eq!(fake.regs.rip, CODE + 1);
}

#[test]
fn int_n_is_an_interrupt_with_rip_after_it() {
    let mut fake = Fake::new().at_cpl(3);
    fake.set_gate(0x80, USER_GATE);
    let outcome = fake.run(code!("int 0x80"));
    assert!(matches!(outcome, Outcome::Interrupt(_, 0x80)));
    assert_eq!(fake.regs.rip, CODE + 2);
}

#[test]
fn gates_are_closed_to_the_less_privileged() {
    let mut fake = Fake::new().at_cpl(3);
    fake.set_gate(3, GATE);
    fake.set_gate(0x80, GATE);
    fake.fault(code!("int3"), Exception::gp(3 << 3 | 2));
    fake.fault(code!("int 0x80"), Exception::gp(0x80 << 3 | 2));
}

#[test]
fn absent_and_invalid_gates_fault() {
    let mut fake = Fake::new();
    fake.set_gate(0x80, 0x0e);
    let not_present = Exception {
        vector: 11,
        ..Exception::gp(0x402)
    };
    fake.fault(code!("int 0x80"), not_present);
    // A 32-bit call gate, a 16-bit interrupt gate in long mode.
    for access in [0x8c, 0x86] {
        fake.set_gate(0x80, access);
        fake.fault(code!("int 0x80"), Exception::gp(0x402));
    }
    fake.set_gate(0x80, GATE);
    fake.sregs.idt.limit = 0x80f - 1;
    fake.fault(code!("int 0x80"), Exception::gp(0x402));
    fake.sregs.idt.limit = 0x80f;
    assert!(matches!(
        fake.run(code!("int 0x80")),
        Outcome::Interrupt(..)
    ));
}

#[test]
fn the_gate_is_read_as_supervisor_even_for_user_code() {
    let mut fake = Fake::new().at_cpl(3);
    fake.set_gate(3, USER_GATE);
    fake.set_page(IDT, 3);
    assert!(matches!(fake.run(code!("int3")), Outcome::Trap(..)));
    // With SMAP a user page is out of bounds, AC or not.
    let mut fake = fake.at_cpl(0);
    fake.regs.rip = CODE;
    fake.regs.rflags |= AC;
    fake.sregs.cr4 |= 1 << 21;
    fake.set_page(IDT, 7);
    fake.fault(code!("int3"), Exception::pf(1, IDT + 3 * 16 + 5));
}

#[test]
fn protected_mode_has_gates_of_8_bytes_and_real_mode_none() {
    let mut fake = Fake::protected();
    fake.set_gate(0x80, 0x86);
    let outcome = fake.run(code!(".code32\nint 0x80"));
    assert!(matches!(outcome, Outcome::Interrupt(_, 0x80)));
    fake.sregs.cr0 = 0x10;
    fake.sregs.cs.db = 0;
    fake.sregs.idt.limit = 0;
    assert!(matches!(
        fake.run(&[0xcd, 0x10]),
        Outcome::Interrupt(_, 0x10)
    ));
}

#[test]
fn virtual_8086_mode_needs_iopl_3_for_int_n_only() {
    let mut fake = Fake::protected();
    fake.sregs.cs.db = 0;
    fake.set_gate(0x21, USER_GATE);
    fake.set_gate(3, USER_GATE);
    fake.regs.rflags |= VM;
    fake.fault(&[0xcd, 0x21], Exception::gp(0));
    assert!(matches!(fake.run(&[0xcc]), Outcome::Trap(_, 3)));
    fake.regs.rflags |= IOPL;
    assert!(matches!(
        fake.run(&[0xcd, 0x21]),
        Outcome::Interrupt(_, 0x21)
    ));
}

#[test]
fn stac_and_clac_need_cpl_0() {
    let mut fake = Fake::new();
    fake.regs.rflags = 0x8d7;
    fake.finish(code!("stac"));
    assert_eq!(fake.regs.rflags, 0x8d7 | AC);
    fake.regs.rip = CODE;
    fake.finish(code!("clac"));
    assert_eq!(fake.regs.rflags, 0x8d7);
    for cpl in 1..=3 {
        let mut fake = Fake::new().at_cpl(cpl);
        fake.fault(code!("stac"), Exception::UD);
        fake.fault(code!("clac"), Exception::UD);
    }
}

#[test]
fn undefined_opcodes_are_ud() {
    let mut fake = Fake::new();
    fake.fault(code!("ud2"), Exception::UD);
    fake.fault(&[0x0f, 0xb9, 0xc0], Exception::UD);
    fake.fault(&[0x0f, 0xff, 0xc0], Exception::UD);
}

#[test]
fn segment_bases_are_read_and_written_in_both_widths() {
    let mut fake = Fake::new().at_cpl(3);
    fake.sregs.fs.base = 0x1234_5678_9abc;
    fake.sregs.gs.base = 0xffff_8000_1234_5678;
    fake.finish(code!("rdfsbase rax"));
    assert_eq!(fake.regs.rax, 0x1234_5678_9abc);
    fake.regs.rip = CODE;
    fake.finish(code!("rdgsbase eax"));
    assert_eq!(fake.regs.rax, 0x1234_5678);
    fake.regs.rip = CODE;
    fake.regs.rcx = 0xffff_ffff_8765_4321;
    fake.finish(code!("wrfsbase ecx"));
    assert_eq!(fake.sregs.fs.base, 0x8765_4321);
    fake.regs.rip = CODE;
    fake.finish(code!("wrgsbase rcx"));
    assert_eq!(fake.sregs.gs.base, 0xffff_ffff_8765_4321);
}

#[test]
fn a_segment_base_has_to_be_canonical() {
    let mut fake = Fake::new();
    fake.regs.rcx = NON_CANONICAL;
    fake.fault(code!("wrfsbase rcx"), Exception::gp(0));
    fake.fault(code!("wrgsbase rcx"), Exception::gp(0));
    // With 57-bit addresses it is.
    fake.sregs.cr4 |= 1 << 12;
    fake.finish(code!("wrgsbase rcx"));
    assert_eq!(fake.sregs.gs.base, NON_CANONICAL);
}

#[test]
fn segment_base_instructions_need_cr4_fsgsbase() {
    let mut fake = Fake::new();
    fake.sregs.cr4 &= !CR4_FSGSBASE;
    for code in [
        code!("rdfsbase rax"),
        code!("rdgsbase rax"),
        code!("wrfsbase rax"),
        code!("wrgsbase rax"),
    ] {
        fake.fault(code, Exception::UD);
    }
}

#[test]
fn rdpid_is_tsc_aux_zero_extended() {
    let mut fake = Fake::new().at_cpl(3);
    fake.tsc_aux = 0xffff_ffff_8000_0003;
    fake.regs.rax = u64::MAX;
    fake.finish(code!("rdpid rax"));
    assert_eq!(fake.regs.rax, 0x8000_0003);
}

#[test]
fn an_idt_that_is_not_mapped_is_a_page_fault() {
    let mut fake = Fake::new();
    fake.sregs.idt.base = UNMAPPED;
    fake.sregs.idt.limit = 0xfff;
    fake.regs.rdi = DATA;
    fake.fault(code!("int3"), Exception::pf(0, UNMAPPED + 53));
}
