//! Without an agent: a shell on the console, and a power-off when it ends.

use core::ffi::CStr;

use crate::process::{Plan, Pointers};
use crate::serve::asked;
use crate::sys::{self, Fd, Reboot};

const GREETING: &[u8] = b"hull: type 'poweroff' or Ctrl-D to leave\n";
const SHELLS: [&[&CStr]; 2] = [&[c"/bin/sh"], &[c"/bin/busybox", c"sh"]];

/// Run a shell with the environment that the kernel gave init. Returns how the guest must end.
pub fn run<'a>(
    signals: Fd,
    pointers: &'a mut Pointers,
    env: impl Iterator<Item = &'a CStr> + Clone,
) -> Reboot {
    let Ok(console) = sys::open(c"/dev/console", sys::O_RDWR | sys::O_NOCTTY) else {
        return Reboot::PowerOff;
    };
    let _ = sys::write(console, GREETING);
    for argv in SHELLS {
        let argv = argv.iter().copied();
        let plan = Plan::new(
            &mut *pointers,
            argv,
            env.clone(),
            c"",
            [console; 3],
            true,
            None,
        );
        if let Some(Ok(shell)) = plan.map(Plan::start) {
            return wait(signals, shell);
        }
    }
    let _ = sys::write(
        console,
        b"hull: neither /bin/sh nor /bin/busybox can be run\n",
    );
    Reboot::PowerOff
}

fn wait(signals: Fd, shell: i32) -> Reboot {
    loop {
        let signal = sys::next_signal(signals);
        if let Some(reboot) = asked(signal) {
            return reboot;
        }
        while let Some((pid, _)) = sys::reap() {
            if pid == shell {
                return Reboot::PowerOff;
            }
        }
    }
}
