//! The registers of virtio-mmio, version 2, by offset (virtio 1.2, table 4.1), and one of hull's own.

pub const MAGIC_VALUE: u64 = 0x000;
pub const VERSION: u64 = 0x004;
pub const DEVICE_ID: u64 = 0x008;
pub const VENDOR_ID: u64 = 0x00c;
pub const DEVICE_FEATURES: u64 = 0x010;
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
pub const DRIVER_FEATURES: u64 = 0x020;
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
pub const QUEUE_SEL: u64 = 0x030;
pub const QUEUE_NUM_MAX: u64 = 0x034;
pub const QUEUE_NUM: u64 = 0x038;
pub const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
pub const INTERRUPT_STATUS: u64 = 0x060;
pub const INTERRUPT_ACK: u64 = 0x064;
pub const STATUS: u64 = 0x070;
pub const QUEUE_DESC_LOW: u64 = 0x080;
pub const QUEUE_DESC_HIGH: u64 = 0x084;
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub const SHM_SEL: u64 = 0x0ac;
pub const SHM_LEN_LOW: u64 = 0x0b0;
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// Reserved in virtio 1.2. The I/O port at which hull's own kernel notifies the device's queues, each by
/// its index (32 bits), or 0: at QueueNotify (guest/kernel/patches/0015-hull-virtio-exits.patch).
pub const NOTIFY_PORT: u64 = 0x0f0;
pub const CONFIG_GENERATION: u64 = 0x0fc;
pub const CONFIG: u64 = 0x100;

/// The name of the register at `offset`, as the table has it.
pub fn name(offset: u64) -> Option<&'static str> {
    Some(match offset {
        MAGIC_VALUE => "MagicValue",
        VERSION => "Version",
        DEVICE_ID => "DeviceID",
        VENDOR_ID => "VendorID",
        DEVICE_FEATURES => "DeviceFeatures",
        DEVICE_FEATURES_SEL => "DeviceFeaturesSel",
        DRIVER_FEATURES => "DriverFeatures",
        DRIVER_FEATURES_SEL => "DriverFeaturesSel",
        QUEUE_SEL => "QueueSel",
        QUEUE_NUM_MAX => "QueueNumMax",
        QUEUE_NUM => "QueueNum",
        QUEUE_READY => "QueueReady",
        QUEUE_NOTIFY => "QueueNotify",
        INTERRUPT_STATUS => "InterruptStatus",
        INTERRUPT_ACK => "InterruptACK",
        STATUS => "Status",
        QUEUE_DESC_LOW => "QueueDescLow",
        QUEUE_DESC_HIGH => "QueueDescHigh",
        QUEUE_DRIVER_LOW => "QueueDriverLow",
        QUEUE_DRIVER_HIGH => "QueueDriverHigh",
        QUEUE_DEVICE_LOW => "QueueDeviceLow",
        QUEUE_DEVICE_HIGH => "QueueDeviceHigh",
        SHM_SEL => "SHMSel",
        SHM_LEN_LOW..=SHM_BASE_HIGH => "SHMLen, SHMBase",
        NOTIFY_PORT => "NotifyPort",
        CONFIG_GENERATION => "ConfigGeneration",
        CONFIG.. => "Config",
        _ => return None,
    })
}

/// The value of MagicValue.
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// The value of Version: not a legacy device.
pub const VERSION_2: u32 = 2;
/// The value of VendorID, which hull chose.
pub const VENDOR: u32 = u32::from_le_bytes(*b"hull");

/// Bit of InterruptStatus: the device has used buffers of a queue.
pub const INTERRUPT_USED: u32 = 1;
/// Bit of InterruptStatus: the configuration space has changed.
pub const INTERRUPT_CONFIG: u32 = 2;
