//! Packets between device and driver (virtio 1.2, 5.10.6): a header, and data behind it.

/// CID of the host (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;
/// Bytes of data in one packet, in either direction.
pub const MAX_DATA: usize = 64 << 10;
/// VIRTIO_VSOCK_TYPE_STREAM (virtio 1.2, 5.10.6).
pub const STREAM: u16 = 1;
/// Flag of SHUTDOWN: the sender will receive no more (virtio 1.2, 5.10.6.6).
pub const NO_RECEIVE: u32 = 1 << 0;
/// Flag of SHUTDOWN: the sender will send no more.
pub const NO_SEND: u32 = 1 << 1;
/// Both flags: the connection is at its end.
pub const NO_MORE: u32 = NO_RECEIVE | NO_SEND;

/// struct virtio_vsock_hdr (virtio 1.2, 5.10.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's CID; the upper half is reserved and 0.
    pub src_cid: u64,
    /// The receiver's CID, as [`Header::src_cid`].
    pub dst_cid: u64,
    /// Port of the sender's program.
    pub src_port: u32,
    /// Port of the receiver's program.
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    /// [`STREAM`]; in a packet of the guest, any number.
    pub kind: u16,
    /// An [`Op`]'s code; in a packet of the guest, any number.
    pub op: u16,
    /// Of a SHUTDOWN: [`NO_RECEIVE`], [`NO_SEND`].
    pub flags: u32,
    /// Bytes that the sender's buffer holds.
    pub buf_alloc: u32,
    /// Bytes that have left the sender's buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Bytes of an encoded header.
    pub const SIZE: usize = 44;

    /// The header in `bytes`, of which all values are possible.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// The header as it lies in guest memory.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SIZE);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The RST that answers this packet: of its type, in the other direction.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Rst as u16,
            ..Self::default()
        }
    }
}

/// The next `N` bytes of `rest`, which has them.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((first, after)) => {
            *rest = after;
            *first
        }
        None => [0; N],
    }
}

/// Operations (virtio 1.2, 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Open a connection to the ports in the header.
    Request = 1,
    /// The connection is open.
    Response = 2,
    /// There is no such connection, or none from now on.
    Rst = 3,
    /// The sender will send or receive no more, as the flags say.
    Shutdown = 4,
    /// Data of an open connection.
    Rw = 5,
    /// Only `buf_alloc` and `fwd_cnt`, which every packet has.
    CreditUpdate = 6,
    /// Ask for a CREDIT_UPDATE.
    CreditRequest = 7,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Rst,
        Self::Shutdown,
        Self::Rw,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The operation with this number.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| *op as u16 == code)
    }
}
