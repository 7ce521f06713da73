//! Names of a device type and its parts, and those that all types share (virtio 1.2, 5 and 6).

/// A device type with the names of its parts.
pub struct Kind {
    /// Its number (virtio 1.2, 5).
    pub id: u32,
    /// Its name in the specification.
    pub name: &'static str,
    /// Bits and names of its features, as far as hull knows them.
    pub features: &'static [(u32, &'static str)],
    /// The fields of its configuration space: name, offset, bytes.
    pub fields: &'static [(&'static str, u64, usize)],
}

/// Features of rings and transport (virtio 1.2, 6).
pub const COMMON: &[(u32, &str)] = &[
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (38, "NOTIFICATION_DATA"),
    (40, "RING_RESET"),
];

/// Bits of Status (virtio 1.2, 2.1).
pub const STATUS: &[(u32, &str)] = &[
    (0, "ACKNOWLEDGE"),
    (1, "DRIVER"),
    (3, "FEATURES_OK"),
    (2, "DRIVER_OK"),
    (6, "DEVICE_NEEDS_RESET"),
    (7, "FAILED"),
];

/// Bits of InterruptStatus (virtio 1.2, 4.2.2).
pub const INTERRUPT: &[(u32, &str)] = &[(0, "used buffer"), (1, "configuration change")];
