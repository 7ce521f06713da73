//! A boot explained as it happens: what is done, why, with which values, where the manual describes
//! it, and what would happen without it.
//!
//! `builder::build` and `run` call [`Story::tell`] after each step; the texts of all steps are
//! here. Without a listener no text is made.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::boot::{Format, Loaded, Mode};
use crate::devices::bus::Bus;
use crate::inspect::lockdown::{Lockdown, TRIED, Thread};
use crate::kvm::vcpu::Vcpu;
use crate::memory::GuestMemory;
use crate::memory::layout::{
    ACPI, BOOT_PARAMS, CMDLINE, EBDA, GDT, KVM_IDENTITY_MAP, KVM_TSS, PAGE_TABLES,
};

/// One step of a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The ioctl or table, and in a few words what it is for.
    pub title: &'static str,
    /// What was done and why, with the values of this machine.
    pub what: String,
    /// What would happen if it were left out.
    pub without: &'static str,
    /// Where the manuals describe it.
    pub manual: &'static str,
}

/// Called with the number of the step, from 1, and the step.
pub type Tell = dyn Fn(usize, &Step) + Send + Sync;

/// A function that is called with each step.
#[derive(Clone)]
pub struct Listener(pub Arc<Tell>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// The steps so far, and their listener if there is one.
pub struct Story {
    listener: Option<Listener>,
    told: AtomicUsize,
}

impl Story {
    /// A story whose steps `listener` is called with.
    pub fn new(listener: Option<Listener>) -> Self {
        Self {
            listener,
            told: AtomicUsize::new(0),
        }
    }

    /// Tell the step that `step` makes.
    pub fn tell(&self, step: impl FnOnce() -> Step) {
        if let Some(Listener(listener)) = &self.listener {
            let number = self.told.fetch_add(1, Ordering::Relaxed) + 1;
            listener(number, &step());
        }
    }

    /// Tell several, in order.
    pub fn tell_all(&self, steps: impl FnOnce() -> Vec<Step>) {
        if self.listener.is_some() {
            steps().into_iter().for_each(|step| self.tell(|| step));
        }
    }
}

/// The step that opens /dev/kvm.
pub fn open_kvm() -> Step {
    Step {
        title: "open /dev/kvm, KVM_GET_API_VERSION",
        what: "The kernel's hypervisor is a device file: what opens it is an ordinary process without \
               privileges. It answers 12, as it has since 2007; what it can do beyond that is asked \
               for by KVM_CHECK_EXTENSION (hull doctor lists it)."
            .into(),
        without: "a guest's instructions would have to be emulated one by one, as QEMU's TCG does.",
        manual: "Documentation/virt/kvm/api.rst, 4.1",
    }
}

/// The step that gives up rights, which were read back from the kernel afterwards.
pub fn lock_down() -> Vec<Step> {
    let Ok(seen) = Lockdown::of_process() else {
        return Vec::new();
    };
    let has = |lost: bool| if lost { "gone" } else { "kept" };
    // The threads of shares keep what root's files need.
    let others = || seen.threads.iter().filter(|thread| thread.name != "share");
    let all = |given_up: fn(&Thread) -> bool| has(others().all(given_up));
    vec![Step {
        title: "PR_SET_NO_NEW_PRIVS, capset, PR_SET_DUMPABLE: what hull gives up",
        what: format!(
            "Devices are emulated by this process, and a guest may find a fault in them. So it has no \
             more rights than they need, from here to its end: capabilities {}, privileges by executing \
             a program {}, core dumps {}, being traced by its own user {}; descriptors that it was \
             started with are closed. The threads of the machine begin later and inherit it. hull \
             inspect NAME lockdown shows each.",
            all(|thread| thread.capabilities == "0x0"),
            all(|thread| thread.no_new_privileges),
            has(seen.core_bytes == [0, 0]),
            has(!seen.dumpable),
        ),
        without: "a guest that breaks out of a device would have the rights of the user.",
        manual: "capabilities(7), prctl(2), docs/security.md",
    }]
}

/// The step after which the threads of the machine open no files and make no system calls but those that they
/// need.
pub fn restricted() -> Vec<Step> {
    let Ok(seen) = Lockdown::of_process() else {
        return Vec::new();
    };
    let filtered = seen.threads.iter().filter(|thread| thread.seccomp == 2);
    let opened = match &seen.opened[..] {
        [] => format!("{} could not be opened", TRIED.join(", ")),
        opened => format!("{} could be opened", opened.join(", ")),
    };
    vec![Step {
        title: "landlock_restrict_self, SECCOMP_SET_MODE_FILTER: what a thread may still do",
        what: format!(
            "A fault in a device may let a guest decide what a thread does next. So each thread may open \
             only files in the folder of the machines' records, and has a list of the system calls that it \
             needs; both begin before it works for the guest, and nothing widens them. {} of the {} threads \
             have their list now, and tried by this one: {opened}. None can execute a program, connect to \
             anything or make memory executable; another call ends hull with status 148. docs/security.md \
             has the lists.",
            filtered.count(),
            seen.threads.len()
        ),
        without: "a guest that breaks out of a device would have all files of the user, and all of the \
                  kernel's 400 system calls.",
        manual: "landlock(7), seccomp(2), src/sandbox/filters.rs",
    }]
}

/// The step that enters a jail, read back from the kernel afterwards.
pub fn jail() -> Vec<Step> {
    let Ok(seen) = Lockdown::of_process() else {
        return Vec::new();
    };
    let root = match seen.root_entries {
        Some(0) => "empty".into(),
        Some(entries) => format!("with {entries} entries"),
        None => "out of reach".into(),
    };
    vec![Step {
        title: "unshare, pivot_root, setresuid: the jail",
        what: format!(
            "All files, networks and sockets of the machine are open, so hull leaves the host's: its root \
             folder is {root} and has {} mount, it sees no other processes, network, System V IPC or host \
             name than its own, and it is user {}, who owns no files. Another process of hull stays outside, \
             passes signals on and cleans up.",
            seen.mounts, seen.uid
        ),
        without: "a guest that breaks out of a device would find the host's files and processes.",
        manual: "namespaces(7), pivot_root(2), docs/security.md",
    }]
}

/// The step that maps guest memory.
pub fn guest_memory(memory: &GuestMemory) -> Step {
    let regions: Vec<String> = memory
        .iter()
        .map(|region| {
            let start = region.start_addr().raw_value();
            let last = start + (region.len() - 1);
            format!(
                "{start:#x} to {last:#x} ({} MiB) is at {:p} of this process",
                region.len() >> 20,
                region.as_ptr()
            )
        })
        .collect();
    Step {
        title: "mmap: the guest's RAM",
        what: format!(
            "The guest's physical memory is memory of this process, mapped without being there: a \
             page costs something from when it is first touched. GPA (guest-physical address) {}.",
            regions.join("; ")
        ),
        without: "there would be nothing to load a kernel into.",
        manual: "mmap(2), MAP_NORESERVE",
    }
}

/// The steps that create the virtual machine, its memory slots and its chips.
pub fn virtual_machine(memory: &GuestMemory, irqchip: bool) -> Vec<Step> {
    let slots = memory.iter().count();
    let mut steps = vec![
        Step {
            title: "KVM_CREATE_VM",
            what:
                "A machine without memory, processors or devices; a file descriptor stands for it."
                    .into(),
            without: "there would be no machine to give the rest to.",
            manual: "Documentation/virt/kvm/api.rst, 4.2",
        },
        Step {
            title: "KVM_SET_USER_MEMORY_REGION: memory slots",
            what: format!(
                "{slots} slot{}, by which KVM knows what of the process's memory a guest-physical \
                 address is: from them it fills the second set of page tables (EPT, nested paging), through which \
                 the processor translates what the guest takes for physical. Whatever lies in no slot \
                 is an exit to hull, which is how devices in memory (MMIO) come about.",
                if slots == 1 { "" } else { "s" }
            ),
            without: "the first instruction fetch would be an exit, KVM_EXIT_MMIO or an internal error.",
            manual: "Documentation/virt/kvm/api.rst, 4.35; Intel SDM 3C, 28.3; AMD APM 2, 15.25",
        },
        Step {
            title: "KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR",
            what: format!(
                "Four pages that no guest uses, at {KVM_IDENTITY_MAP:#x} and {KVM_TSS:#x}: Intel \
                 processors without unrestricted guests run real mode as a virtual-8086 task on them."
            ),
            without: "real mode would fail on old Intel processors; others do not need it.",
            manual: "Documentation/virt/kvm/api.rst, 4.18, 4.40",
        },
    ];
    if irqchip {
        steps.push(Step {
            title: "KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2",
            what: "Two 8259 interrupt controllers, an IOAPIC with 24 pins, a local APIC a vCPU and an \
                   8254 timer, all inside the kernel: an interrupt reaches the guest without an exit \
                   to hull, and HLT waits in the kernel."
                .into(),
            without: "no interrupt arrives and HLT is an exit (try --break no-irqchip).",
            manual: "Documentation/virt/kvm/api.rst, 4.24, 4.71; 82093AA IOAPIC data sheet",
        });
    }
    steps
}

/// The step that creates `count` vCPUs.
pub fn vcpu(count: usize) -> Step {
    Step {
        title: "KVM_CREATE_VCPU, KVM_SET_CPUID2, KVM_SET_MSRS, KVM_SET_LAPIC",
        what: format!(
            "{count} vCPU{}, each a file descriptor of its own with a page shared with the kernel \
             (struct kvm_run), in which it says why it came back. CPUID is what this host and KVM \
             have in common, with the machine's topology and the leaf 0x40000000 that says KVM; the \
             MSRs and the local APIC are set as firmware would leave them (MTRR default write-back, \
             LINT0 as ExtINT, LINT1 as NMI).",
            if count == 1 { "" } else { "s" }
        ),
        without: "there would be nothing to run; without CPUID a 64-bit kernel finds no long mode and \
                  stops (try --break wrong-cpuid).",
        manual: "Documentation/virt/kvm/api.rst, 4.7, 4.20, 4.89; Intel SDM 3A, 12.11, 13.4",
    }
}

/// The steps that put devices on the buses.
pub fn devices(ports: &Bus, machine_mmio: &Bus) -> Vec<Step> {
    let list = |bus: &Bus, width: usize| -> String {
        let devices: Vec<String> = bus
            .devices()
            .map(|(base, _, name, _)| format!("{name} at {base:#0width$x}"))
            .collect();
        devices.join(", ")
    };
    vec![
        Step {
            title: "the port bus",
            what: format!(
                "What a PC has at I/O ports, as far as kernels look for it: {}. IN and OUT there are \
                 exits (KVM_EXIT_IO); hull looks the port up and calls the device.",
                list(ports, 5)
            ),
            without: "reads answer ones, as on a bus without a device; a kernel has no console.",
            manual: "Documentation/virt/kvm/api.rst, 5; PC16550D data sheet",
        },
        Step {
            title: "virtio-mmio windows, KVM_IOEVENTFD",
            what: format!(
                "In the hole between RAM and 4 GiB: {}. A window is a page of registers; the write \
                 that says a queue has something new (QueueNotify) becomes an eventfd's, for which the \
                 vCPU does not leave the kernel. Each has an interrupt line of the IOAPIC.",
                list(machine_mmio, 2)
            ),
            without: "no disk, network, folder, socket, entropy or command's streams.",
            manual: "virtio 1.2, 4.2; Documentation/virt/kvm/api.rst, 4.59",
        },
    ]
}

/// The steps that load the kernel and write the tables that it reads.
pub fn loaded(loaded: &Loaded, memory: &GuestMemory) -> Vec<Step> {
    let mut steps = vec![kernel_copied(loaded)];
    if !matches!(loaded.format, Format::Flat(_)) {
        steps.extend(boot_data(loaded, memory));
    }
    if !matches!(
        loaded.entry.mode,
        Mode::Flat16 | Mode::Flat32 | Mode::Pvh | Mode::Linux32
    ) {
        steps.push(Step {
            title: "GDT and page tables",
            what: format!(
                "At {GDT:#x} a flat code and a flat data segment; at {PAGE_TABLES:#x} a PML4, a PDPT and \
                 four page directories that map the first 4 GiB to themselves in pages of 2 MiB: in \
                 long mode the processor translates every address."
            ),
            without: "the first fetch is a page fault without a handler: a triple fault.",
            manual: "Intel SDM 3A, 3.4.5, 4.5",
        });
    }
    steps
}

fn kernel_copied(loaded: &Loaded) -> Step {
    let kind = match loaded.format {
        Format::Flat(_) => "A flat payload",
        Format::Vmlinux => "An ELF vmlinux",
        Format::Pvh => "An ELF kernel with a PVH entry",
        Format::BzImage => "A bzImage",
        Format::BootProtocol => "A kernel of the Linux boot protocol",
    };
    let unpacked = match loaded.unpacked {
        Some(_) => ", unpacked by hull, which is faster than to have the guest do it",
        None => "",
    };
    let initrd = match &loaded.initrd {
        Some(initrd) => format!(
            " The initial RAM disk lies at {:#x}, {} KiB, as high as the kernel allows.",
            initrd.start,
            (initrd.end - initrd.start) >> 10
        ),
        None => String::new(),
    };
    Step {
        title: "the kernel, copied into guest memory",
        what: format!(
            "{kind}{unpacked}: {:#x} to {:#x}, to be entered at {:#x}. No firmware runs: hull does what \
             a boot loader would.{initrd}",
            loaded.kernel.start, loaded.kernel.end, loaded.entry.rip
        ),
        without: "the vCPU would execute zeroes, which are ADD [RAX], AL, up to the end of memory.",
        manual: "System V ABI, 5; Documentation/arch/x86/boot.rst",
    }
}

/// Command line, boot parameters and tables of processors, as Linux reads them.
fn boot_data(loaded: &Loaded, memory: &GuestMemory) -> Vec<Step> {
    let e820: Vec<String> = crate::boot::memory_map(memory)
        .into_iter()
        .map(|(range, usable)| {
            let kind = if usable { "RAM" } else { "reserved" };
            format!("{:#x}-{:#x} {kind}", range.start, range.end - 1)
        })
        .collect();
    vec![
        Step {
            title: "the command line",
            what: format!("At {CMDLINE:#x}, ended by a zero byte: {}", loaded.cmdline),
            without: "the kernel would print to nowhere and not know its init.",
            manual: "Documentation/admin-guide/kernel-parameters.rst",
        },
        Step {
            title: "boot parameters with the memory map (e820)",
            what: format!(
                "At {BOOT_PARAMS:#x} a page that says where command line and initial RAM disk are, and \
             what memory there is: {}.",
                e820.join(", ")
            ),
            without: "the kernel would have no memory to manage; with a wrong map it dies when it \
                  uses what is not there (try --break bad-e820).",
            manual: "Documentation/arch/x86/zero-page.rst; ACPI 6.5, 15",
        },
        Step {
            title: "MP table and ACPI tables",
            what: format!(
                "At {EBDA:#x} and {ACPI:#x}: which processors, IOAPICs and interrupt lines there are, \
             how to power off, and in the DSDT the virtio windows, for kernels that do not take \
             them from the command line."
            ),
            without: "one processor, no IOAPIC (try --break no-mptable with --cpus 2).",
            manual: "MultiProcessor Specification 1.4; ACPI 6.5, 5.2",
        },
    ]
}

/// The step that sets the registers of the first vCPU.
pub fn registers(vcpu: &mut Vcpu, loaded: &Loaded) -> Step {
    let how = match loaded.entry.mode {
        Mode::Linux64 => "long mode, RSI the boot parameters (64-bit boot protocol)",
        Mode::Linux32 => "protected mode, ESI the boot parameters (32-bit boot protocol)",
        Mode::Pvh => "protected mode, EBX the start info (PVH)",
        Mode::Flat16 => "real mode",
        Mode::Flat32 => "protected mode",
        Mode::Flat64 => "long mode",
    };
    let values = match vcpu.whole_state(&[]) {
        Ok(state) => format!(
            " RIP {:#x}, RSP {:#x}, RSI {:#x}, CS {:#x}, CR0 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x}.",
            state.regs.rip,
            state.regs.rsp,
            state.regs.rsi,
            state.sregs.cs.selector,
            state.sregs.cr0,
            state.sregs.cr3,
            state.sregs.cr4,
            state.sregs.efer
        ),
        Err(_) => String::new(),
    };
    Step {
        title: "KVM_SET_SREGS, KVM_SET_REGS: the first vCPU at the entry",
        what: format!(
            "A processor starts in real mode at 0xfffffff0, where firmware would be. hull puts it where \
             a boot loader ends: {how}.{values} The other vCPUs wait for the kernel's INIT and SIPI."
        ),
        without: "it would start at the reset vector, where nothing is.",
        manual: "Documentation/arch/x86/boot.rst; Intel SDM 3A, 10.1.4, 10.8.5",
    }
}

/// The step that starts the vCPU threads.
pub fn run(added_words: &[String]) -> Step {
    let added = match added_words {
        [] => String::new(),
        words => format!(
            " This host's KVM is a software one, which emulates the guest's kernel: hull finishes the \
             instructions that it cannot, and gave the kernel the words {}.",
            words.join(" ")
        ),
    };
    Step {
        title: "KVM_RUN",
        what: format!(
            "Each vCPU has a thread, which calls KVM_RUN in a loop: the processor enters the guest and \
             comes back for what only hull can do. --explain=exits shows these exits, --trace FILE all \
             of them in time, hull inspect what the machine holds.{added}"
        ),
        without: "nothing would run.",
        manual: "Documentation/virt/kvm/api.rst, 4.10, 5; Intel SDM 3C, 26; AMD APM 2, 15.5",
    }
}
