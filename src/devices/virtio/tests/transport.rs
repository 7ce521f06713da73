//! Registers, negotiation, interrupts (virtio 1.2, 4.2.2 and 3.1.1).

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::*;
use super::super::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use super::{CONFIG, Call, F_SOME, Probe, QUEUES, probe};
use crate::devices::bus::BusDevice;

const OFFERED: u64 = F_SOME | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
const UP_TO_FEATURES: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

#[test]
fn a_driver_identifies_the_device() {
    let (mut guest, _) = probe();
    assert_eq!(guest.read(reg::MAGIC), 0x7472_6976);
    assert_eq!(guest.read(reg::VERSION), 2);
    assert_eq!(guest.read(reg::DEVICE_ID), 42);
    assert_eq!(guest.read(reg::VENDOR_ID).to_le_bytes(), *b"hull");
    for (sel, features) in [(0, OFFERED as u32), (1, (OFFERED >> 32) as u32), (2, 0)] {
        guest.write(reg::DEVICE_FEATURES_SEL, sel);
        assert_eq!(guest.read(reg::DEVICE_FEATURES), features);
    }
    for (sel, size) in [(0, 8), (1, 64), (2, 0), (u32::MAX, 0)] {
        guest.write(reg::QUEUE_SEL, sel);
        assert_eq!(guest.read(reg::QUEUE_NUM_MAX), size);
        assert_eq!(guest.read(reg::QUEUE_READY), 0);
    }
    // No shared memory.
    assert_eq!(guest.read(reg::SHM_LEN_LOW), u32::MAX);
    assert_eq!(guest.events.take(), Vec::<String>::new());
}

#[test]
fn a_device_goes_live_at_the_last_of_four_steps() {
    let (mut guest, probe) = probe();
    // As a driver begins; there is nothing to reset yet.
    guest.set_status(0);
    guest.negotiate(F_SOME);
    assert!(guest.set_up(0, 8));
    assert_eq!(probe.take(), []);
    assert_eq!(guest.set_status(LIVE), LIVE);
    let features = F_SOME | F_VERSION_1;
    assert_eq!(probe.take(), [Call::Activate { features }]);
    // Said again, it is not done again.
    assert_eq!(guest.set_status(LIVE), LIVE);
    assert_eq!(probe.take(), []);
    assert_eq!(guest.events.take(), Vec::<String>::new());
    assert_eq!(guest.interrupt.take(), 0);
}

#[test]
fn steps_out_of_order_do_not_count() {
    // What is written to Status one after the other, and what it reads as in the end.
    let cases: &[(&[u32], u32)] = &[
        (&[DRIVER], 0),
        (&[DRIVER_OK], 0),
        (&[NEEDS_RESET], 0),
        (&[0x10], 0),
        (&[ACKNOWLEDGE | FEATURES_OK], ACKNOWLEDGE),
        (&[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER_OK], ACKNOWLEDGE),
        // No features yet, so not VIRTIO_F_VERSION_1.
        (&[LIVE], ACKNOWLEDGE | DRIVER),
        (&[3, 3 | DRIVER_OK], 3),
        // Bits are not taken back.
        (&[3, DRIVER], 3),
        (&[3, FEATURES_OK], 3),
        (&[3, FAILED], 3),
    ];
    for (writes, status) in cases {
        let (mut guest, probe) = probe();
        for &value in *writes {
            guest.write(reg::STATUS, value);
        }
        assert_eq!(guest.status(), *status, "{writes:x?}");
        assert_eq!(probe.take(), [], "{writes:x?}");
    }
}

#[test]
fn features_that_are_not_offered_are_not_ok() {
    let refused: [&dyn Fn(&mut Guest); 4] = [
        &|guest| guest.accept(F_VERSION_1 | 1 << 4),
        &|guest| guest.accept(F_VERSION_1 | 1 << 63),
        // A legacy driver.
        &|guest| guest.accept(F_SOME),
        &|guest| {
            guest.accept(F_VERSION_1);
            guest.write(reg::DRIVER_FEATURES_SEL, 2);
            guest.write(reg::DRIVER_FEATURES, 1);
        },
    ];
    for accept in refused {
        let (mut guest, probe) = probe();
        guest.set_status(3);
        accept(&mut guest);
        assert_eq!(guest.set_status(UP_TO_FEATURES), 3);
        assert_eq!(guest.set_status(LIVE), 3);
        assert_eq!(probe.take(), []);
        assert!(!guest.events.take().is_empty());
    }
}

#[test]
fn features_can_be_chosen_again_until_they_are_ok_and_not_after() {
    let (mut guest, probe) = probe();
    guest.accept(F_VERSION_1); // before DRIVER
    guest.set_status(3);
    assert_eq!(guest.set_status(UP_TO_FEATURES), 3);
    guest.accept(F_VERSION_1 | F_SOME);
    assert_eq!(guest.set_status(UP_TO_FEATURES), UP_TO_FEATURES);
    guest.accept(F_VERSION_1 | F_EVENT_IDX);
    guest.set_status(LIVE);
    let features = F_VERSION_1 | F_SOME;
    assert_eq!(probe.take(), [Call::Activate { features }]);
}

#[test]
fn a_driver_that_gives_up_ends_the_device_until_reset() {
    let (mut guest, probe) = probe();
    guest.start(0, 8);
    assert_eq!(guest.set_status(LIVE | FAILED), LIVE | FAILED);
    probe.take();
    guest.lend(0, 4);
    guest.notify(0);
    assert_eq!(guest.set_status(LIVE), LIVE | FAILED);
    assert_eq!(probe.take(), []);

    assert_eq!(guest.set_status(0), 0);
    assert_eq!(probe.take(), [Call::Reset]);

    // It gave up before it was up.
    guest.negotiate(0);
    let status = UP_TO_FEATURES | FAILED;
    assert_eq!(guest.set_status(status), status);
    assert_eq!(guest.set_status(LIVE | FAILED), status);
    assert!(!guest.set_up(0, 8));
    assert_eq!(probe.take(), []);
}

#[test]
fn reset_forgets_all_of_the_driver() {
    let (mut guest, probe) = probe();
    guest.start(F_SOME, 8);
    guest.interrupt.take();
    guest.lend(0, 4);
    guest.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(guest.set_status(0), 0);
    assert_eq!(probe.take().last(), Some(&Call::Reset));
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 0);
    for queue in 0..QUEUES.len() {
        guest.write(reg::QUEUE_SEL, queue as u32);
        assert_eq!(guest.read(reg::QUEUE_READY), 0);
    }
    // The earlier notification has no effect.
    guest.run();
    assert_eq!(probe.take(), []);

    // Nothing of the setup is left: the size is the largest again, the rings are nowhere.
    guest.negotiate(0);
    guest.write(reg::QUEUE_SEL, 0);
    guest.write(reg::QUEUE_READY, 1);
    assert_eq!(guest.set_status(LIVE), LIVE);
    let features = F_VERSION_1;
    assert_eq!(probe.take(), [Call::Activate { features }]);
    guest.set_status(0);

    guest.start(0, 4);
    guest.lend(0, 4);
    guest.notify(0);
    assert_eq!(guest.received(0), [[0; 4]]);
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let (mut guest, probe) = probe();
    probe.0.lock().unwrap().refuse = true;
    guest.negotiate(0);
    guest.set_up(0, 8);
    assert_eq!(guest.set_status(LIVE), LIVE | NEEDS_RESET);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(guest.interrupt.take(), 1);
    let told = guest.events.take();
    assert!(told[0].contains("cannot work so; stopped"), "{told:?}");
    guest.notify(0);
    assert_eq!(guest.set_status(LIVE), LIVE | NEEDS_RESET);
    probe.0.lock().unwrap().refuse = false;
    assert_eq!(probe.take().len(), 1);

    guest.set_status(0);
    guest.start(0, 8);
    assert_eq!(guest.status(), LIVE);
}

#[test]
fn a_host_call_that_fails_without_a_driver_needs_a_reset_too() {
    let (mut guest, probe) = probe();
    guest.negotiate(0);
    let failed = guest.core().with_device(|_: &mut Probe, _| {
        Err::<(), _>(super::DeviceError::Protocol("out of turn".into()))
    });
    assert_eq!(failed, None);
    // The driver must not be interrupted yet (virtio 1.2, 3.1.2).
    assert_eq!(guest.interrupt.take(), 0);
    assert_eq!(guest.set_status(LIVE), UP_TO_FEATURES | NEEDS_RESET);
    assert_eq!(probe.take(), []);
    guest.set_status(0);
    guest.start(0, 8);
    assert!(probe.is_active());
}

#[test]
fn an_invalid_queue_does_not_become_ready() {
    let rings = [table(0), avail(0), used(0)];
    let [desc, driver, device] = rings;
    // Size, areas, whether that can be. Queue 0 has at most 8 entries: 128, 22 and 70 bytes.
    let cases = [
        (8, rings, true),
        (1, rings, true),
        (0, rings, false),
        (3, rings, false),
        (16, rings, false),
        (0x1_0008, rings, false),
        (u32::MAX, rings, false),
        (8, [0, driver, device], true),
        (8, [desc, 0, device], false),
        (8, [desc + 8, driver, device], false),
        (8, [desc, driver + 1, device], false),
        (8, [desc, driver, device + 2], false),
        (8, [LOW_END - 128, driver, device], true),
        (8, [LOW_END - 112, driver, device], false),
        (8, [desc, LOW_END - 20, device], false),
        (8, [desc, driver, LOW_END - 68], false),
        (8, [LOW_END, driver, device], false),
        (8, [HIGH, HIGH + 128, HIGH + 256], true),
        (8, [HIGH - 16, driver, device], false),
        (8, [HIGH_END, driver, device], false),
        (8, [1 << 40, driver, device], false),
        (8, [desc, u64::MAX - 1, device], false),
        (8, [desc, driver, u64::MAX - 3], false),
        (8, [u64::MAX - 15, driver, device], false),
    ];
    for (size, areas, ready) in cases {
        let (mut guest, _) = probe();
        guest.negotiate(0);
        let case = format!("{size} at {areas:x?}");
        assert_eq!(guest.set_up_at(0, size, areas), ready, "{case}");
        assert_eq!(guest.events.take().is_empty(), ready, "{case}");
        // A queue that is not there does not keep the device from working.
        assert_eq!(guest.set_status(LIVE), LIVE);
        guest.notify(0);
        assert_eq!(guest.status(), LIVE, "{case}");
    }
}

#[test]
fn a_queue_is_set_up_at_its_time_only() {
    let (mut guest, probe) = probe();
    assert!(!guest.set_up(0, 8));
    guest.set_status(3);
    assert!(!guest.set_up(0, 8));
    guest.set_status(0);

    guest.negotiate(0);
    assert!(guest.set_up(0, 4));
    // Changes to a queue that is ready, and a queue that is none.
    guest.write(reg::QUEUE_NUM, 3);
    guest.write(reg::QUEUE_DESC, 1);
    guest.write(reg::QUEUE_READY, 2);
    assert_eq!(guest.read(reg::QUEUE_READY), 1);
    guest.write(reg::QUEUE_READY, 0);
    assert_eq!(guest.read(reg::QUEUE_READY), 0);
    guest.write(reg::QUEUE_READY, 1);
    assert_eq!(guest.read(reg::QUEUE_READY), 1, "as it was set up");
    guest.write(reg::QUEUE_SEL, 2);
    guest.write(reg::QUEUE_NUM, 8);
    guest.write(reg::QUEUE_READY, 1);
    assert_eq!(guest.read(reg::QUEUE_READY), 0);
    guest.set_status(LIVE);
    assert!(!guest.set_up(1, 64));
    guest.set_up(0, 4);

    guest.offer(0, &[(BUFFERS, 8, true)], false);
    guest.notify(0);
    assert_eq!(probe.chains(), [[(BUFFERS, 8, true)]]);

    // A queue may be stopped, and stays so.
    guest.write(reg::QUEUE_SEL, 0);
    guest.write(reg::QUEUE_READY, 0);
    assert_eq!(guest.read(reg::QUEUE_READY), 0);
    guest.write(reg::QUEUE_READY, 1);
    assert_eq!(guest.read(reg::QUEUE_READY), 0);
    guest.offer(0, &[(BUFFERS, 8, true)], false);
    guest.notify(0);
    assert_eq!(probe.chains(), Vec::<Vec<Piece>>::new());
    assert_eq!(guest.status(), LIVE);
}

#[test]
fn a_notification_counts_when_the_device_is_live() {
    let (mut guest, probe) = probe();
    guest.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(guest.run(), 1);
    guest.start(0, 8);
    probe.take();
    for queue in [2, 0x1_0000, u32::MAX] {
        guest.write(reg::QUEUE_NOTIFY, queue);
    }
    assert_eq!(guest.run(), 0);
    guest.core().process(2);
    assert_eq!(probe.take(), []);
    assert!(guest.events.take()[0].contains("the index of no queue"));
    guest.write(reg::QUEUE_NOTIFY, 1);
    guest.core().process(1);
    assert_eq!(probe.take(), [Call::Process(1)]);
    assert_eq!(
        guest.run(),
        0,
        "a notification is over when it is processed"
    );
    assert_eq!(
        guest
            .core()
            .counters()
            .map(|queue| queue.notifications)
            .collect::<Vec<_>>(),
        [0, 1]
    );
}

#[test]
fn an_interrupt_is_pending_until_it_is_acknowledged() {
    let (mut guest, _) = probe();
    guest.start(0, 8);
    guest.lend(0, 4);
    guest.notify(0);
    assert_eq!(guest.interrupt.take(), 1);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 1);
    guest.core().with_device(|_: &mut Probe, driver| {
        driver.config_changed();
        Ok(())
    });
    assert_eq!(guest.interrupt.take(), 1);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 3);
    guest.write(reg::INTERRUPT_ACK, 1);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 2);
    guest.write(reg::INTERRUPT_ACK, u32::MAX);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 0);
    // Nothing done, nothing to tell.
    guest.notify(0);
    assert_eq!(guest.interrupt.take(), 0);
}

#[test]
fn a_configuration_change_has_a_new_generation_and_interrupts_a_live_driver() {
    let (mut guest, _) = probe();
    let change = |guest: &mut Guest| {
        let before = guest.read(reg::CONFIG_GENERATION);
        guest.core().with_device(|_: &mut Probe, driver| {
            driver.config_changed();
            Ok(())
        });
        assert_ne!(guest.read(reg::CONFIG_GENERATION), before);
    };
    change(&mut guest);
    guest.negotiate(0);
    change(&mut guest);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 0);
    assert_eq!(guest.interrupt.take(), 0);
    guest.set_status(LIVE);
    change(&mut guest);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(guest.interrupt.take(), 1);
    // Reset does not take it back to one that stood for other bytes.
    let before = guest.read(reg::CONFIG_GENERATION);
    guest.set_status(0);
    assert_eq!(guest.read(reg::CONFIG_GENERATION), before);
}

#[test]
fn configuration_space_has_an_end() {
    let (mut guest, probe) = probe();
    let mut read = |offset, len| {
        let mut data = vec![0xff; len];
        guest.transport.read(offset, &mut data);
        data
    };
    assert_eq!(read(reg::CONFIG, 1), CONFIG[..1]);
    assert_eq!(read(reg::CONFIG + 3, 2), CONFIG[3..5]);
    assert_eq!(read(reg::CONFIG + 4, 4), [14, 15, 0, 0]);
    assert_eq!(read(reg::CONFIG + 2, 8), [12, 13, 14, 15, 0, 0, 0, 0]);
    assert_eq!(read(u64::MAX - 7, 8), [0; 8]);
    // Writes reach the device at any time; it has to stand that.
    guest.transport.write(reg::CONFIG + 1, &[1, 2]);
    assert_eq!(probe.take(), [Call::WriteConfig(1, vec![1, 2])]);
}

#[test]
fn registers_take_aligned_words_only() {
    let (mut guest, probe) = probe();
    guest.set_status(1);
    for (offset, data) in [
        (reg::STATUS, &[3][..]),
        (reg::STATUS, &[3, 0]),
        (reg::STATUS, &[3, 0, 0, 0, 0, 0, 0, 0]),
        (reg::STATUS + 1, &[3, 0, 0, 0]),
        (reg::STATUS - 4, &[0, 0, 0, 0, 3, 0, 0, 0]),
        // None to write, or none at all.
        (reg::MAGIC, &[0; 4]),
        (reg::INTERRUPT_STATUS, &[3, 0, 0, 0]),
        (0xc0, &[1, 0, 0, 0]),
    ] {
        guest.transport.write(offset, data);
        let mut there = vec![0xff; data.len()];
        guest.transport.read(offset, &mut there);
        let word = data.len() == 4 && offset % 4 == 0;
        assert!(word || there.iter().all(|&byte| byte == 0));
    }
    // Three places written and read in the wrong way, and three that are none to write.
    assert_eq!(guest.events.take().len(), 3 + 3 + 3);
    assert_eq!(guest.status(), 1);
    assert_eq!(guest.read(reg::MAGIC), 0x7472_6976);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 0);
    assert_eq!(probe.take(), []);
}

#[test]
fn with_device_finds_the_device_by_its_type() {
    struct Other;
    impl super::Device for Other {
        fn kind(&self) -> &'static super::Kind {
            &super::KIND
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_max_sizes(&self) -> &[u16] {
            &[]
        }
        fn config(&self, _: u64, _: &mut [u8]) {}
        fn activate(&mut self, _: &mut super::Driver) -> Result<(), super::DeviceError> {
            Ok(())
        }
        fn reset(&mut self) {}
        fn process(&mut self, _: usize, _: &mut super::Driver) -> Result<(), super::DeviceError> {
            Ok(())
        }
    }
    let (guest, _) = probe();
    let mut core = guest.core();
    assert_eq!(core.with_device(|_: &mut Probe, _| Ok(7)), Some(7));
    assert_eq!(core.with_device(|_: &mut Other, _| Ok(7)), None);
}

/// Something that a guest or the host does to a transport.
#[derive(Clone, Debug)]
enum Deed {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// Status with its next bit set, so that sequences get somewhere.
    Step,
    Accept(u64),
    SetUp {
        queue: usize,
        size: u32,
    },
    Poke {
        addr: u64,
        value: u16,
    },
    Process(usize),
    ConfigChanged,
}

fn deed() -> impl Strategy<Value = Deed> {
    let offset = prop_oneof![
        8 => (0u64..0x44).prop_map(|register| register * 4),
        1 => 0u64..0x1000,
        1 => any::<u64>(),
    ];
    let value = prop_oneof![
        0u32..20,
        any::<u32>(),
        prop::sample::select(vec![0, 0x40, 0x80, 0xf, 0x4f, 0x8f]),
    ];
    let word = value.prop_map(|value| value.to_le_bytes().to_vec());
    let data = prop_oneof![8 => word, 1 => prop::collection::vec(any::<u8>(), 0..9)];
    prop_oneof![
        3 => (offset.clone(), 1usize..9).prop_map(|(offset, len)| Deed::Read { offset, len }),
        6 => (offset, data).prop_map(|(offset, data)| Deed::Write { offset, data }),
        8 => Just(Deed::Step),
        4 => prop::sample::select(vec![F_VERSION_1, OFFERED, 1 << 4, u64::MAX])
            .prop_map(Deed::Accept),
        3 => (0usize..2, 0u32..10).prop_map(|(queue, size)| Deed::SetUp { queue, size }),
        3 => (0x1000u64..0x3000, 0u16..10)
            .prop_map(|(addr, value)| Deed::Poke { addr: addr & !1, value }),
        2 => (0usize..3).prop_map(Deed::Process),
        1 => Just(Deed::ConfigChanged),
    ]
}

fn act(guest: &mut Guest, deed: &Deed) {
    match deed {
        Deed::Read { offset, len } => guest.transport.read(*offset, &mut vec![0xff; *len]),
        Deed::Write { offset, data } => guest.transport.write(*offset, data),
        Deed::Step => {
            let status = guest.status();
            let steps = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
            if let Some(step) = steps.into_iter().find(|step| status & step == 0) {
                guest.write(reg::STATUS, status | step);
            }
        }
        Deed::Accept(features) => guest.accept(*features),
        Deed::SetUp { queue, size } => {
            guest.set_up(*queue, *size);
        }
        Deed::Poke { addr, value } => guest.memory.write_obj(*value, GuestAddress(*addr)).unwrap(),
        Deed::Process(queue) => guest.core().process(*queue),
        Deed::ConfigChanged => {
            guest.core().with_device(|_: &mut Probe, driver| {
                driver.config_changed();
                Ok(())
            });
        }
    }
}

proptest! {
    // The probe itself panics when it is called out of order.
    #[test]
    fn no_sequence_of_accesses_brings_a_device_out_of_order(
        deeds in prop::collection::vec(deed(), 0..80),
    ) {
        let (mut guest, probe) = probe();
        let mut before = 0;
        let mut told = 0;
        for deed in &deeds {
            act(&mut guest, deed);
            guest.read_all();
            let status = guest.status();
            prop_assert_eq!(probe.is_active(), status & DRIVER_OK != 0, "{:?}", deed);
            // The steps that were taken are the first so many.
            let steps = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
            let taken = steps.iter().take_while(|&step| status & step != 0);
            let sum = taken.sum::<u32>();
            prop_assert_eq!(status & !(NEEDS_RESET | FAILED), sum, "{:?}", deed);
            // Nothing was taken back but by a reset, after which nothing is left.
            prop_assert!(status == 0 || status & before == before, "{:?}", deed);
            for call in probe.take() {
                if let Call::Activate { features } = call {
                    prop_assert_eq!(features & !OFFERED, 0);
                    prop_assert_eq!(before & (FAILED | NEEDS_RESET), 0);
                }
            }
            let raised = guest.interrupt.take();
            if status & DRIVER_OK == 0 {
                prop_assert_eq!(guest.read(reg::INTERRUPT_STATUS), 0);
                prop_assert_eq!(raised, 0);
            }
            told += guest.events.take().len();
            before = status;
        }
        prop_assert!(told <= 16);
    }
}
