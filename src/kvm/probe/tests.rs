use super::*;
use crate::kvm::vm;

#[test]
fn no_capability_is_listed_twice() {
    let mut numbers: Vec<u32> = NEEDS.iter().map(|need| need.capability).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), NEEDS.len());
}

#[test]
fn this_machines_kvm_can_be_measured() {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: this_machines_kvm_can_be_measured: no /dev/kvm");
        return;
    }
    let found = measure(vm::open().unwrap()).unwrap();
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
