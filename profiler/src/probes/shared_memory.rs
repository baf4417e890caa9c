//! A BPF array that both sides see as memory: read and written with no system call.

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

/// A mapping of a BPF array (made with `BPF_F_MMAPABLE`) whose entries are 8-byte words.
///
/// The kernel side writes while this is read: each word is whole, but words may be of different
/// moments. What must fit together is for the entry's own protocol to say.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRaw,
    entry_words: usize,
    entries: usize,
}

/// A type whose every bit pattern is valid and that is made of whole 8-byte words.
///
/// # Safety
/// The type is `repr(C)`, holds integers only, has no padding, and its alignment is at most 8.
pub unsafe trait Words: Copy {}

// SAFETY: u64 only.
unsafe impl<const N: usize> Words for [u64; N] {}

impl SharedMemory {
    /// Maps the array behind `fd`, of `entries` entries of `entry_bytes`.
    pub(crate) fn new(
        fd: impl AsFd,
        entries: usize,
        entry_bytes: usize,
        writable: bool,
    ) -> io::Result<Self> {
        // The kernel pads each entry to 8 bytes.
        let entry_words = entry_bytes.div_ceil(8);
        let length = entries
            .checked_mul(entry_words * 8)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut options = MmapOptions::new();
        options.len(length);
        let fd = fd.as_fd().as_raw_fd();
        let map = if writable {
            options.map_raw(fd)?
        } else {
            options.map_raw_read_only(fd)?
        };
        Ok(Self {
            map,
            entry_words,
            entries,
        })
    }

    /// Entries in the array.
    pub const fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes of an entry, its padding included.
    pub const fn entry_bytes(&self) -> usize {
        self.entry_words * 8
    }

    /// One word; `None` past the end.
    pub fn word(&self, entry: usize, word: usize) -> Option<u64> {
        Some(self.cell(entry, word)?.load(Ordering::Acquire))
    }

    /// A whole entry as `T`, read word by word; `None` past the end or if `T` is larger.
    pub fn entry<T: Words>(&self, entry: usize) -> Option<T> {
        if size_of::<T>() > self.entry_bytes() || entry >= self.entries {
            return None;
        }
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        let words = value.as_mut_ptr().cast::<u64>();
        for word in 0..size_of::<T>() / 8 {
            let read = self.word(entry, word)?;
            // SAFETY: `word` is less than the words of `T`; the write may be unaligned for T's
            // own alignment, hence write_unaligned.
            unsafe { words.add(word).write_unaligned(read) };
        }
        // SAFETY: every word of `T` was written, and `Words` says that any pattern is valid.
        Some(unsafe { value.assume_init() })
    }

    /// One byte, for tables of bytes; `None` past the end.
    pub fn byte(&self, at: usize) -> Option<u8> {
        Some(self.byte_cell(at)?.load(Ordering::Relaxed))
    }

    /// Writes one byte; false past the end. Only for a writable mapping.
    pub(crate) fn set_byte(&self, at: usize, value: u8) -> bool {
        match self.byte_cell(at) {
            Some(cell) => {
                cell.store(value, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }

    fn cell(&self, entry: usize, word: usize) -> Option<&AtomicU64> {
        if entry >= self.entries || word >= self.entry_words {
            return None;
        }
        let at = self.map.as_ptr().cast::<AtomicU64>();
        // SAFETY: the word lies in the mapping, which is page-aligned and lives as long as self;
        // the kernel side writes whole aligned words.
        Some(unsafe { &*at.add(entry * self.entry_words + word) })
    }

    fn byte_cell(&self, at: usize) -> Option<&AtomicU8> {
        if at >= self.entries * self.entry_words * 8 {
            return None;
        }
        // SAFETY: the byte lies in the mapping, which lives as long as self.
        Some(unsafe { &*self.map.as_ptr().cast::<AtomicU8>().add(at) })
    }
}

/// An array of `T` in shared memory.
#[derive(Debug)]
pub struct SharedArray<T> {
    memory: SharedMemory,
    entry: PhantomData<T>,
}

impl<T: Words> SharedArray<T> {
    /// `memory` as an array of `T`; `None` if its entries are not of that size.
    pub(crate) fn new(memory: SharedMemory) -> Option<Self> {
        (size_of::<T>().next_multiple_of(8) == memory.entry_bytes()
            && size_of::<T>().is_multiple_of(8))
        .then_some(Self {
            memory,
            entry: PhantomData,
        })
    }

    /// Entries.
    pub const fn len(&self) -> usize {
        self.memory.entries()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One entry; `None` past the end.
    pub fn get(&self, index: usize) -> Option<T> {
        self.memory.entry(index)
    }

    /// One word of one entry; `None` past the end.
    pub fn word(&self, index: usize, word: usize) -> Option<u64> {
        self.memory.word(index, word)
    }

    /// Sets an entry's first word to 0, byte by byte, where the memory may be written.
    pub(crate) fn clear_first_word(&self, index: usize) {
        let first = index * self.memory.entry_bytes();
        for byte in first..first + 8 {
            self.memory.set_byte(byte, 0);
        }
    }
}
