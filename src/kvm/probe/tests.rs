use super::*;
use crate::kvm::vm;

#[test]
fn no_capability_is_listed_twice() {
    let mut numbers: Vec<u32> = NEEDS.iter().map(|need| need.capability).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), NEEDS.len());
}

/// This machine's KVM, or `None` with a word about it.
fn kvm(test: &str) -> Option<Kvm> {
    let kvm = vm::open();
    if let Err(error) = &kvm {
        println!("skipped: {test}: {error}");
    }
    kvm.ok()
}

#[test]
fn a_guest_that_does_not_exit_is_stopped() {
    let Some(kvm) = kvm("a_guest_that_does_not_come_back") else {
        return;
    };
    let result = within(Duration::from_millis(20), kvm, |vcpu, memory| {
        let mut guest = Guest { vcpu, memory };
        guest.place(b"\xeb\xfe", Ring::Kernel)?; // jmp $
        guest.run()
    });
    assert!(matches!(result, Err(ProbeError::Stuck)), "{result:?}");
}

#[test]
fn a_guest_that_shuts_down_is_an_error_with_its_exit() {
    let Some(kvm) = kvm("a_guest_that_shuts_down") else {
        return;
    };
    let result = within(TIMEOUT, kvm, |vcpu, memory| {
        let mut guest = Guest { vcpu, memory };
        guest.place(b"\xcc", Ring::User)?; // int3, without an IDT
        guest.run()
    });
    assert!(matches!(result, Err(ProbeError::Exit(_))), "{result:?}");
}

#[test]
fn the_probe_restores_the_vcpu() {
    let Some(kvm) = kvm("the_probe_of_a_boot") else {
        return;
    };
    let same = within(TIMEOUT, kvm, |vcpu, memory| {
        let before = vcpu.fd().get_sregs().unwrap();
        finishes_every_instruction(vcpu, memory)?;
        let after = vcpu.fd().get_sregs().unwrap();
        let code: u64 = memory.read_obj(GuestAddress(FLAT_PAYLOAD))?;
        Ok((before.cr0, before.cr4, before.efer, before.cs, 0)
            == (after.cr0, after.cr4, after.efer, after.cs, code))
    });
    assert!(same.unwrap());
}

#[test]
fn this_machines_kvm_can_be_measured() {
    let Some(kvm) = kvm("this_machines_kvm_can_be_measured") else {
        return;
    };
    let found = measure(kvm).unwrap();
    println!("{found:?}");
    let software = found.kind == Kind::Software;
    assert_eq!(
        found.finishes_instructions, !software,
        "a processor finishes what it runs: {found:?}"
    );
    assert!(found.port_exit_us > 0.0);
    if !software {
        assert!(
            found.honours_cpuid && found.honours_user_cpuid && found.enters_kernel_by_syscall,
            "{found:?}"
        );
    }
}
