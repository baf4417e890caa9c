//! Member offsets of the running kernel's structs, from its own type information (BTF).
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux`. Out: byte offsets by struct name and member path
//! (`task_struct` + `tgid`, `sock` + `__sk_common.skc_num`). The file is trusted for what it says
//! but not for its shape: every read is checked, and malformed input is an error.
//!
//! Format: <https://docs.kernel.org/bpf/btf.html>.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where the kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset is not known.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel shows no types, or the file cannot be read.
    #[error("no kernel type information at {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the read said.
        source: io::Error,
    },
    /// The bytes are not BTF.
    #[error("kernel type information is malformed: {0}")]
    Malformed(&'static str),
    /// The kernel has no such struct or union.
    #[error("the kernel has no struct {structure}")]
    NoStruct {
        /// Its name.
        structure: String,
    },
    /// The struct has no such member.
    #[error("the kernel's struct {structure} has no member {member}")]
    NoMember {
        /// The struct.
        structure: String,
        /// The member's path.
        member: String,
    },
    /// The member is a bit field, or several structs of this name disagree.
    #[error("{structure}.{member} has no one byte offset: {reason}")]
    NoOffset {
        /// The struct.
        structure: String,
        /// The member's path.
        member: String,
        /// Why.
        reason: &'static str,
    },
}

/// Reads the running kernel's types; the bytes are for [`Types::parse`].
pub fn read(path: &Path) -> Result<Vec<u8>, BtfError> {
    std::fs::read(path).map_err(|source| BtfError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const TYPE: usize = 12;
const MEMBER: usize = 12;

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const TYPE_TAG: u32 = 18;

/// Bounds the work one lookup may cause, whatever the file says: the kernel's largest structs
/// have a few hundred members, and names nest a few levels.
const MAX_VISITS: u32 = 1 << 16;
const MAX_DEPTH: u32 = 32;

/// The types of one kernel.
#[derive(Debug)]
pub struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type's record starts in `types`; id 1 is the first.
    offsets: Vec<u32>,
    /// Ids of structs and unions by name. Different structs may share one name.
    structs: HashMap<&'a [u8], Vec<u32>>,
}

#[derive(Clone, Copy)]
struct Record {
    at: usize,
    name: u32,
    info: u32,
    target: u32,
}

impl Record {
    const fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    const fn count(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// With it, a member's offset holds a bit field's size in its upper 8 bits.
    const fn kind_flag(self) -> bool {
        self.info >> 31 == 1
    }

    /// Length of what follows the record; `None` for a kind this reader does not know.
    const fn trailer(self) -> Option<usize> {
        match self.kind() {
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => Some(4),
            // ARRAY
            3 => Some(12),
            // STRUCT, UNION, DATASEC, ENUM64
            4 | 5 | 15 | 19 => Some(12 * self.count()),
            // ENUM, FUNC_PROTO
            6 | 13 => Some(8 * self.count()),
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => Some(0),
            _ => None,
        }
    }
}

enum Found {
    At { bits: u32, type_id: u32 },
    BitField,
}

impl<'a> Types<'a> {
    /// Indexes the types in `bytes` (native byte order).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let short = BtfError::Malformed("shorter than it says");
        let magic = bytes.first_chunk::<2>().copied().map(u16::from_ne_bytes);
        if magic != Some(MAGIC) {
            return Err(BtfError::Malformed("wrong magic number"));
        }
        let header = |at| word(bytes, at).ok_or(BtfError::Malformed("no whole header"));
        let header_length = header(4)? as usize;
        if header_length < HEADER {
            return Err(BtfError::Malformed("header too short"));
        }
        let (type_start, type_length) = (header(8)?, header(12)?);
        let (string_start, string_length) = (header(16)?, header(20)?);
        let section = |start: u32, length: u32| {
            let start = header_length.checked_add(start as usize)?;
            bytes.get(start..start.checked_add(length as usize)?)
        };
        let (Some(types), Some(strings)) = (
            section(type_start, type_length),
            section(string_start, string_length),
        ) else {
            return Err(short);
        };

        // A record takes 12 bytes or more, so the file's length bounds this.
        let mut offsets = Vec::with_capacity(types.len() / 24 + 1);
        offsets.push(0);
        let mut structs: HashMap<&'a [u8], Vec<u32>> = HashMap::with_capacity(types.len() / 256);
        let mut at = 0;
        while at < types.len() {
            let record = record(types, at).ok_or(BtfError::Malformed("a type is cut off"))?;
            let trailer = record
                .trailer()
                .ok_or(BtfError::Malformed("a type of unknown kind"))?;
            if matches!(record.kind(), STRUCT | UNION) && record.name != 0 {
                let name =
                    string(strings, record.name).ok_or(BtfError::Malformed("a name is cut off"))?;
                structs.entry(name).or_default().push(offsets.len() as u32);
            }
            offsets.push(at as u32);
            at += TYPE + trailer;
        }
        if at != types.len() {
            return Err(BtfError::Malformed("the last type is cut off"));
        }
        Ok(Self {
            types,
            strings,
            offsets,
            structs,
        })
    }

    /// Byte offset of `member` in `structure`. The path's names are separated by dots; anonymous
    /// structs and unions on the way are looked through and not named.
    pub fn offset(&self, structure: &str, member: &str) -> Result<u32, BtfError> {
        let ids = self
            .structs
            .get(structure.as_bytes())
            .ok_or_else(|| BtfError::NoStruct {
                structure: structure.to_owned(),
            })?;
        let no_offset = |reason| BtfError::NoOffset {
            structure: structure.to_owned(),
            member: member.to_owned(),
            reason,
        };
        let mut visits = MAX_VISITS;
        let mut offset = None;
        for id in ids {
            let bits = match self.path(*id, member, &mut visits)? {
                None => continue,
                Some(Found::BitField) => return Err(no_offset("it is a bit field")),
                Some(Found::At { bits, .. }) => bits,
            };
            if bits % 8 != 0 {
                return Err(no_offset("it does not start at a byte"));
            }
            if offset.is_some_and(|other| other != bits / 8) {
                return Err(no_offset("several structs of this name disagree"));
            }
            offset = Some(bits / 8);
        }
        offset.ok_or_else(|| BtfError::NoMember {
            structure: structure.to_owned(),
            member: member.to_owned(),
        })
    }

    fn path(&self, id: u32, path: &str, visits: &mut u32) -> Result<Option<Found>, BtfError> {
        let (mut id, mut bits) = (id, 0u32);
        for name in path.split('.') {
            match self.member(id, name.as_bytes(), MAX_DEPTH, visits)? {
                Some(Found::At {
                    bits: inner,
                    type_id,
                }) => {
                    bits = bits
                        .checked_add(inner)
                        .ok_or(BtfError::Malformed("an offset overflows"))?;
                    id = type_id;
                }
                other => return Ok(other),
            }
        }
        Ok(Some(Found::At { bits, type_id: id }))
    }

    /// The member called `name` of the struct `id` (through typedefs and modifiers), also inside
    /// its anonymous members.
    fn member(
        &self,
        id: u32,
        name: &[u8],
        depth: u32,
        visits: &mut u32,
    ) -> Result<Option<Found>, BtfError> {
        let Some(record) = self.struct_behind(id) else {
            return Ok(None);
        };
        let Some(depth) = depth.checked_sub(1) else {
            return Err(BtfError::Malformed("structs nest too deeply"));
        };
        for index in 0..record.count() {
            *visits = visits
                .checked_sub(1)
                .ok_or(BtfError::Malformed("a struct has too many members"))?;
            let at = record.at + TYPE + index * MEMBER;
            let (Some(member_name), Some(type_id), Some(offset)) = (
                word(self.types, at),
                word(self.types, at + 4),
                word(self.types, at + 8),
            ) else {
                return Err(BtfError::Malformed("a member is cut off"));
            };
            let (bits, bit_field) = if record.kind_flag() {
                (offset & 0x00ff_ffff, offset >> 24 != 0)
            } else {
                (offset, false)
            };
            if member_name == 0 {
                if let Some(found) = self.member(type_id, name, depth, visits)? {
                    return match found {
                        Found::At {
                            bits: inner,
                            type_id,
                        } => Ok(Some(Found::At {
                            bits: bits
                                .checked_add(inner)
                                .ok_or(BtfError::Malformed("an offset overflows"))?,
                            type_id,
                        })),
                        Found::BitField => Ok(Some(Found::BitField)),
                    };
                }
            } else if string(self.strings, member_name) == Some(name) {
                return Ok(Some(if bit_field {
                    Found::BitField
                } else {
                    Found::At { bits, type_id }
                }));
            }
        }
        Ok(None)
    }

    fn struct_behind(&self, id: u32) -> Option<Record> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let at = *self.offsets.get(usize::try_from(id).ok()?)?;
            if id == 0 {
                return None;
            }
            let record = record(self.types, at as usize)?;
            match record.kind() {
                STRUCT | UNION => return Some(record),
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = record.target,
                _ => return None,
            }
        }
        None
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk::<4>()
        .copied()
        .map(u32::from_ne_bytes)
}

fn record(types: &[u8], at: usize) -> Option<Record> {
    let bytes = types.get(at..)?;
    Some(Record {
        at,
        name: word(bytes, 0)?,
        info: word(bytes, 4)?,
        target: word(bytes, 8)?,
    })
}

fn string(strings: &[u8], at: u32) -> Option<&[u8]> {
    let bytes = strings.get(at as usize..)?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.get(..end)
}

#[cfg(test)]
mod tests;
