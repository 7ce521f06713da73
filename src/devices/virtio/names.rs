//! Names of device types, features and fields (virtio 1.2, 5 and 6).

/// A device type with the names of its parts.
pub struct Kind {
    id: u32,
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

/// The names of the device type `id`.
pub fn kind(id: u32) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.id == id)
}

const KINDS: &[Kind] = &[
    Kind {
        id: 1,
        name: "network",
        features: &[
            (0, "CSUM"),
            (1, "GUEST_CSUM"),
            (3, "MTU"),
            (5, "MAC"),
            (7, "GUEST_TSO4"),
            (8, "GUEST_TSO6"),
            (9, "GUEST_ECN"),
            (11, "HOST_TSO4"),
            (12, "HOST_TSO6"),
            (13, "HOST_ECN"),
            (15, "MRG_RXBUF"),
            (16, "STATUS"),
        ],
        fields: &[("mac", 0, 6), ("status", 6, 2), ("mtu", 10, 2)],
    },
    Kind {
        id: 2,
        name: "block",
        features: &[
            (2, "SEG_MAX"),
            (5, "RO"),
            (6, "BLK_SIZE"),
            (9, "FLUSH"),
            (13, "DISCARD"),
            (14, "WRITE_ZEROES"),
        ],
        fields: &[
            ("capacity", 0, 8),
            ("seg_max", 12, 4),
            ("blk_size", 20, 4),
            ("max_discard_sectors", 36, 4),
            ("max_discard_seg", 40, 4),
            ("max_write_zeroes_sectors", 48, 4),
            ("max_write_zeroes_seg", 52, 4),
        ],
    },
    Kind {
        id: 3,
        name: "console",
        features: &[(0, "SIZE"), (1, "MULTIPORT"), (2, "EMERG_WRITE")],
        fields: &[("cols", 0, 2), ("rows", 2, 2), ("max_nr_ports", 4, 4)],
    },
    Kind {
        id: 4,
        name: "entropy",
        features: &[],
        fields: &[],
    },
    Kind {
        id: 5,
        name: "memory balloon",
        features: &[
            (1, "STATS_VQ"),
            (2, "DEFLATE_ON_OOM"),
            (5, "PAGE_REPORTING"),
        ],
        fields: &[("num_pages", 0, 4), ("actual", 4, 4)],
    },
    Kind {
        id: 19,
        name: "socket",
        features: &[(0, "STREAM"), (1, "SEQPACKET")],
        fields: &[("guest_cid", 0, 8)],
    },
    Kind {
        id: 26,
        name: "file system",
        features: &[(0, "NOTIFICATION")],
        fields: &[("tag", 0, 36), ("num_request_queues", 36, 4)],
    },
];
