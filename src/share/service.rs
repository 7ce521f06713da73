//! From a request in guest memory to an operation on [`Files`], and back to an answer.
//!
//! The data of a file goes straight between guest memory and the file; all else is copied out of
//! guest memory once, before it is looked at.

use std::ffi::CStr;
use std::io;

use vm_memory::Address;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::files::{Caller, Files};
use super::wire::*;
use crate::devices::virtio::fs::{Answer, IN_HEADER, OUT_HEADER, Request};
use crate::memory::GuestMemory;
use crate::memory::transfer::{Pieces, Segment};

/// The oldest minor version of FUSE with virtiofs (Linux 5.4).
const MIN_MINOR: u32 = 31;
/// Most data of one message in bytes and in pages (FUSE_MAX_MAX_PAGES).
const MAX_DATA: u32 = 1 << 20;
const MAX_PAGES: u32 = 256;
/// Requests that the guest sends in the background, such as for reading ahead.
const MAX_BACKGROUND: u32 = 0xffff;

/// A guest's file system.
pub struct Service {
    files: Files,
    memory: GuestMemory,
}

/// The result of an operation.
enum Out {
    /// Follows the header.
    Bytes(Vec<u8>),
    /// That many bytes are in guest memory already, where they follow the header.
    Data(usize),
    /// There is none.
    None,
}

impl<T: IntoBytes + Immutable> From<T> for Out {
    fn from(answer: T) -> Self {
        Self::Bytes(answer.as_bytes().to_vec())
    }
}

/// What follows the header of a message.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    /// The structure at the beginning.
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> io::Result<T> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| errno(libc::EINVAL))?;
        self.0 = rest;
        Ok(value)
    }

    /// A name with its NUL.
    fn name(&mut self) -> io::Result<&'a CStr> {
        let name = CStr::from_bytes_until_nul(self.0).map_err(|_| errno(libc::EINVAL))?;
        self.0 = self.0.get(name.count_bytes() + 1..).unwrap_or_default();
        Ok(name)
    }
}

impl Service {
    /// Serve `files` to the guest that has `memory`.
    pub fn new(files: Files, memory: GuestMemory) -> Self {
        Self { files, memory }
    }

    /// Serve one request. None if it waits for a lock, which it only does if it `may`: try again.
    pub fn serve(&mut self, request: &Request, may: bool) -> Option<Answer> {
        let written = match self.handle(request, may) {
            Ok(Some(written)) => written,
            Ok(None) => return None,
            Err(_) => 0, // not in guest memory
        };
        Some(Answer {
            written,
            warning: self.files.warning(),
            mounted: self.files.is_mounted(),
        })
    }

    /// Close and forget all that the guest has opened.
    pub fn reset(&mut self) {
        // After a failure the guest finds nothing by the numbers that it has.
        let _ = self.files.unmount();
    }

    fn handle(&mut self, request: &Request, may_wait: bool) -> io::Result<Option<u32>> {
        let mut message = Vec::new();
        let limit = IN_HEADER as usize + size_of::<WriteIn>();
        let first = part(&request.readable, 0, limit);
        Pieces::new(&self.memory, &first)?.append_to(0, &mut message);
        let Ok((header, _)) = InHeader::read_from_prefix(&message) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if header.opcode != op::WRITE {
            let rest = part(&request.readable, limit, usize::MAX);
            Pieces::new(&self.memory, &rest)?.append_to(0, &mut message);
        }
        let total: usize = request.readable.iter().map(|part| part.len as usize).sum();
        let body = message.get(IN_HEADER as usize..).unwrap_or_default();
        let mut done = match header.len as usize == total {
            true => self.operate(&header, Body(body), request),
            false => Err(errno(libc::EINVAL)),
        };
        if let Err(error) = &done
            && header.opcode == op::SETLKW
            && error.kind() == io::ErrorKind::WouldBlock
        {
            if may_wait {
                return Ok(None);
            }
            done = Err(errno(libc::ENOLCK));
        }
        if request.writable.is_empty() || matches!(header.opcode, op::FORGET | op::BATCH_FORGET) {
            return Ok(Some(0));
        }
        self.answer(&header, request, done).map(Some)
    }

    fn answer(
        &self,
        header: &InHeader,
        request: &Request,
        done: io::Result<Out>,
    ) -> io::Result<u32> {
        let pieces = Pieces::new(&self.memory, &request.writable)?;
        let room = pieces.len().saturating_sub(OUT_HEADER as usize);
        let (error, bytes, data) = match done {
            Ok(Out::None) => return Ok(0),
            Ok(Out::Data(data)) => (0, Vec::new(), data),
            Ok(Out::Bytes(bytes)) if bytes.len() <= room => (0, bytes, 0),
            Ok(Out::Bytes(_)) => (libc::EIO, Vec::new(), 0),
            Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), Vec::new(), 0),
        };
        let len = OUT_HEADER as u32 + (bytes.len() + data) as u32;
        let header = OutHeader {
            len,
            error: -error,
            unique: header.unique,
        };
        pieces.fill(&[header.as_bytes(), &bytes].concat());
        Ok(len)
    }

    fn operate(&mut self, header: &InHeader, body: Body, request: &Request) -> io::Result<Out> {
        match header.opcode {
            op::INIT => self.init(body),
            op::DESTROY => {
                self.files.unmount()?;
                Ok(Out::Bytes(Vec::new()))
            }
            op::INTERRUPT => Ok(Out::None), // nothing is served so long that it could end earlier
            op::READ | op::WRITE | op::READDIR | op::READDIRPLUS => {
                self.transfer(header, body, request)
            }
            op::SYMLINK..=op::LINK | op::CREATE | op::TMPFILE | op::RENAME2 => {
                self.change_names(header, body)
            }
            op::LOOKUP..=op::READLINK | op::STATFS | op::BATCH_FORGET => self.look(header, body),
            op::SETXATTR..=op::REMOVEXATTR => self.use_xattrs(header, body),
            op::FLUSH | op::GETLK..=op::SETLKW => self.lock(header, body),
            _ => self.use_open(header, body),
        }
    }

    fn init(&mut self, mut body: Body) -> io::Result<Out> {
        let asked: InitIn = body.take()?;
        if asked.major < MAJOR || asked.major == MAJOR && asked.minor < MIN_MINOR {
            return Err(errno(libc::EPROTO));
        }
        let version = InitOut {
            major: MAJOR,
            minor: MINOR,
            ..InitOut::default()
        };
        if asked.major > MAJOR {
            return Ok(version.into()); // the guest asks again, with this one
        }
        Ok(Out::from(InitOut {
            max_readahead: asked.max_readahead,
            flags: self.files.mount(asked.flags),
            background: MAX_BACKGROUND, // max_background, and no congestion_threshold
            max_write: MAX_DATA,
            time_gran: 1,     // ns
            pages: MAX_PAGES, // max_pages, and no map_alignment
            ..version
        }))
    }

    /// Look up, forget, and ask for what is known without opening.
    fn look(&mut self, header: &InHeader, mut body: Body) -> io::Result<Out> {
        let (files, node) = (&mut self.files, header.node);
        Ok(match header.opcode {
            op::LOOKUP => files.look_up(node, body.name()?)?.into(),
            op::FORGET => {
                files.forget(node, body.take::<ForgetIn>()?.count);
                Out::None
            }
            op::BATCH_FORGET => {
                for _ in 0..body.take::<BatchForgetIn>()?.count {
                    let one: ForgetOne = body.take()?;
                    files.forget(one.node, one.count);
                }
                Out::None
            }
            op::GETATTR => files.attributes(node, &body.take()?)?.into(),
            op::SETATTR => files.set_attributes(node, &body.take()?)?.into(),
            op::READLINK => Out::Bytes(files.read_link(node)?),
            op::STATFS => files.space(node)?.into(),
            _ => return Err(errno(libc::ENOSYS)),
        })
    }

    fn change_names(&mut self, header: &InHeader, mut body: Body) -> io::Result<Out> {
        let (files, node, caller) = (&mut self.files, header.node, Caller::from(header));
        let nothing = |()| Out::Bytes(Vec::new());
        Ok(match header.opcode {
            op::SYMLINK => {
                let (child, target) = (body.name()?, body.name()?);
                files.symlink(caller, target, node, child)?.into()
            }
            op::MKNOD => {
                let asked: MknodIn = body.take()?;
                let child = body.name()?;
                files.make_node(caller, node, child, asked.mode)?.into()
            }
            op::MKDIR => {
                let asked: MkdirIn = body.take()?;
                let child = body.name()?;
                files.make_folder(caller, node, child, asked.mode)?.into()
            }
            op::UNLINK => files.unlink(node, body.name()?).map(nothing)?,
            op::RMDIR => files.remove_folder(node, body.name()?).map(nothing)?,
            op::RENAME => {
                let asked: RenameIn = body.take()?;
                let (old, new) = (body.name()?, body.name()?);
                let to = (asked.new_parent, new);
                files.rename((node, old), to, 0).map(nothing)?
            }
            op::RENAME2 => {
                let asked: Rename2In = body.take()?;
                let (old, new) = (body.name()?, body.name()?);
                let to = (asked.new_parent, new);
                files.rename((node, old), to, asked.flags).map(nothing)?
            }
            op::LINK => {
                let asked: LinkIn = body.take()?;
                files.link(asked.node, node, body.name()?)?.into()
            }
            op::CREATE => {
                let asked: CreateIn = body.take()?;
                both(files.create(caller, node, body.name()?, &asked)?)
            }
            op::TMPFILE => both(files.create_nameless(caller, node, &body.take()?)?),
            _ => return Err(errno(libc::ENOSYS)),
        })
    }

    /// Open, close, and use what is open, without its data.
    fn use_open(&mut self, header: &InHeader, mut body: Body) -> io::Result<Out> {
        let (files, node) = (&mut self.files, header.node);
        let nothing = |()| Out::Bytes(Vec::new());
        Ok(match header.opcode {
            op::OPEN => files.open(node, body.take::<OpenIn>()?.flags)?.into(),
            op::OPENDIR => files.open_folder(node)?.into(),
            op::RELEASE | op::RELEASEDIR => files
                .close(node, body.take::<ReleaseIn>()?.fh)
                .map(nothing)?,
            op::FSYNC | op::FSYNCDIR => {
                let asked: FsyncIn = body.take()?;
                let data = asked.fsync_flags & FSYNC_DATA != 0;
                files.sync(node, asked.fh, data).map(nothing)?
            }
            op::SYNCFS => files.sync_all(node).map(nothing)?,
            op::FALLOCATE => files.allocate(node, &body.take()?).map(nothing)?,
            op::LSEEK => LseekOut {
                offset: files.seek(node, &body.take()?)?,
            }
            .into(),
            op::COPY_FILE_RANGE => written(files.copy(node, &body.take()?)?),
            _ => return Err(errno(libc::ENOSYS)),
        })
    }

    /// Read and write.
    fn transfer(
        &mut self,
        header: &InHeader,
        mut body: Body,
        request: &Request,
    ) -> io::Result<Out> {
        let node = header.node;
        if header.opcode == op::WRITE {
            let asked: WriteIn = body.take()?;
            let begin = IN_HEADER as usize + size_of::<WriteIn>();
            let data = part(&request.readable, begin, asked.size as usize);
            let pieces = Pieces::new(&self.memory, &data)?;
            return Ok(written(self.files.write(node, &asked, &pieces)?));
        }
        let asked: ReadIn = body.take()?;
        let room = part(&request.writable, OUT_HEADER as usize, asked.size as usize);
        let pieces = Pieces::new(&self.memory, &room)?;
        if header.opcode == op::READ {
            return Ok(Out::Data(self.files.read(node, &asked, &pieces)?));
        }
        let full = header.opcode == op::READDIRPLUS;
        let listed = self.files.list(node, &asked, pieces.len(), full)?;
        Ok(Out::Bytes(listed))
    }

    fn use_xattrs(&mut self, header: &InHeader, mut body: Body) -> io::Result<Out> {
        let (files, node) = (&mut self.files, header.node);
        match header.opcode {
            op::SETXATTR => {
                let asked: SetxattrIn = body.take()?;
                let name = body.name()?;
                let value = body.0.get(..asked.size as usize);
                let value = value.ok_or(errno(libc::EINVAL))?;
                files.set_xattr(node, name, value, asked.flags)?;
                Ok(Out::Bytes(Vec::new()))
            }
            op::REMOVEXATTR => {
                files.remove_xattr(node, body.name()?)?;
                Ok(Out::Bytes(Vec::new()))
            }
            op::GETXATTR => {
                let asked: GetxattrIn = body.take()?;
                sized(asked, files.xattr(node, body.name()?)?)
            }
            _ => sized(body.take()?, files.xattrs(node)?),
        }
    }

    fn lock(&mut self, header: &InHeader, mut body: Body) -> io::Result<Out> {
        let (files, node) = (&mut self.files, header.node);
        match header.opcode {
            op::GETLK => return Ok(files.lock_in_the_way(node, &body.take()?)?.into()),
            op::FLUSH => files.unlock_all(node, body.take::<FlushIn>()?.lock_owner)?,
            _ => files.lock(node, &body.take()?)?,
        }
        Ok(Out::Bytes(Vec::new()))
    }
}

fn both((entry, opened): (EntryOut, OpenOut)) -> Out {
    Out::Bytes([entry.as_bytes(), opened.as_bytes()].concat())
}

fn written(bytes: usize) -> Out {
    Out::from(WriteOut {
        size: bytes as u32,
        padding: 0,
    })
}

/// An extended attribute's value; its size alone, if the guest asks for that by a size of 0.
fn sized(asked: GetxattrIn, value: Vec<u8>) -> io::Result<Out> {
    match asked.size as usize {
        0 => Ok(Out::from(GetxattrOut {
            size: value.len() as u32,
            padding: 0,
        })),
        room if value.len() <= room => Ok(Out::Bytes(value)),
        _ => Err(errno(libc::ERANGE)),
    }
}

/// The part of `segments` from byte `skip` on, of at most `len` bytes.
fn part(segments: &[Segment], mut skip: usize, mut len: usize) -> Vec<Segment> {
    let mut part = Vec::new();
    for segment in segments {
        let before = skip.min(segment.len as usize);
        skip -= before;
        let now = len.min(segment.len as usize - before);
        len -= now;
        if now > 0 {
            part.push(Segment {
                addr: segment.addr.unchecked_add(before as u64),
                len: now as u32,
            });
        }
    }
    part
}
