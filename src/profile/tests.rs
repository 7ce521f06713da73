use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::unwind::{Call, call_before};
use super::*;
use crate::kvm::walk::Mode;
use crate::kvm::walk::Paging;
use crate::memory::backing;
use crate::memory::image::Image;

const MAP: &str = "0000000000001000 T outer\n\
                   0000000000002000 T middle\n\
                   0000000000003000 T inner\n\
                   0000000000004000 T end\n";

fn paging() -> Paging {
    Paging {
        mode: Mode::Off,
        cr3: 0,
        write_protect: false,
        no_execute: false,
        smep: false,
        smap: false,
    }
}

fn profile() -> Profile {
    let map = Image::from(MAP.as_bytes());
    Profile::new(1000, Some(Source::SystemMap(map)))
}

fn sample(stack: &[u64], rbp: u64) -> Sample {
    Sample {
        cpu: 0,
        ticks: 1,
        rip: 0x3010,
        rsp: 0x8000,
        rbp,
        user: false,
        paging: paging(),
        stack: stack.iter().flat_map(|word| word.to_le_bytes()).collect(),
    }
}

/// `outer` calls `middle` at 0x1020, `middle` calls `inner` through RAX at 0x2040, and something
/// else at 0x2080.
fn memory() -> GuestMemory {
    let memory = backing::allocate(2 << 20).unwrap();
    let put = |at: u64, code: &[u8]| memory.write_slice(code, GuestAddress(at)).unwrap();
    put(0x1020, &[0xe8, 0xdb, 0x0f, 0, 0]); // 0x1025 + 0xfdb = 0x2000
    put(0x2040, &[0xff, 0xd0]);
    put(0x2080, &[0xe8, 0x7b, 0x1f, 0, 0]); // 0x2085 + 0x1f7b = 0x4000
    memory
}

fn folded(profile: &Profile) -> String {
    let mut text = Vec::new();
    profile.write(Form::Folded, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn callers_are_found_on_a_stack_without_frames() {
    let profile = profile();
    // A number, a stale address of no call, one behind a call of another function, and what is
    // right: the call through a register is nearer.
    let stack = [7, 0x1500, 0x2042, 0x2085, 0x1025, 0];
    profile.add(&sample(&stack, 0), &memory());
    assert_eq!(folded(&profile), "outer;middle;inner 1\n");
}

#[test]
fn callers_are_found_along_frame_pointers() {
    let profile = profile();
    // The word behind an indirect call that lies nearer is no frame's.
    let stack = [0x2042, 0x8020, 0x2042, 0x2042, 0, 0x1025];
    profile.add(&sample(&stack, 0x8008), &memory());
    assert_eq!(folded(&profile), "outer;middle;inner 1\n");
}

#[test]
fn ticks_are_summed_by_name_and_user_space_is_one_frame() {
    let (profile, memory) = (profile(), memory());
    for rip in [0x3000, 0x3fff] {
        profile.add(
            &Sample {
                rip,
                ticks: 2,
                ..sample(&[], 0)
            },
            &memory,
        );
    }
    let user = Sample {
        user: true,
        cpu: 1,
        ..sample(&[], 0)
    };
    profile.add(&user, &memory);
    profile.lose(3);
    assert_eq!(folded(&profile), "vCPU 0;inner 4\nvCPU 1;user space 1\n");
    assert_eq!(profile.totals(), Totals { ticks: 5, lost: 3 });
    let mut picture = Vec::new();
    profile.write(Form::FlameGraph, &mut picture).unwrap();
    let picture = String::from_utf8(picture).unwrap();
    assert!(picture.contains("<svg") && picture.contains("user space"));
}

#[test]
fn call_instructions_are_recognised() {
    for (bytes, expected) in [
        ([0, 0, 0xe8, 0xfb, 0xff, 0xff, 0xff], Call::Direct(0xffb)),
        ([0, 0, 0, 0, 0, 0xff, 0xd3], Call::Indirect), // call rbx
        ([0, 0, 0, 0, 0xff, 0x50, 0x08], Call::Indirect), // call [rax+8]
        ([0xff, 0x14, 0x25, 0, 0, 0, 0], Call::Indirect), // call [disp32]
        ([0, 0xff, 0x15, 1, 2, 3, 4], Call::Indirect), // call [rip+disp32]
        ([0, 0, 0, 0, 0, 0xff, 0xe0], Call::None),     // jmp rax
        ([0, 0, 0, 0, 0xff, 0xd0, 0x90], Call::None),  // ends before
        ([0; 7], Call::None),
    ] {
        assert_eq!(call_before(&bytes, 0x1000), expected, "{bytes:x?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn unwinding_any_stack_terminates(
        words in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..0x5000, 0x8000u64..0x9000], 0..600),
        rbp in prop_oneof![any::<u64>(), 0x8000u64..0x9000],
        rsp in prop_oneof![any::<u64>(), Just(0x8000)],
        code in prop::collection::vec(any::<u8>(), 0x4000),
    ) {
        let memory = backing::allocate(2 << 20).unwrap();
        memory.write_slice(&code, GuestAddress(0x1000)).unwrap();
        let profile = Arc::new(profile());
        profile.add(&Sample { rsp, ..sample(&words, rbp) }, &memory);
        prop_assert_eq!(profile.totals().ticks, 1);
    }
}
