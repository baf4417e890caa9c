//! The object's maps as memory, and what the kernel says of them.

use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::Map;

use super::super::load_error::ProbeError;
use super::super::shared_memory::SharedMemory;

pub(super) fn shared_memory(
    object: &Ebpf,
    name: &'static str,
    writable: bool,
) -> Result<SharedMemory, ProbeError> {
    let map = object.map(name).ok_or(ProbeError::NoMap { map: name })?;
    let (Map::Array(data), Some(info)) = (map, map_info(map)) else {
        return Err(ProbeError::MapShape { map: name });
    };
    SharedMemory::new(data.fd().as_fd(), info.entries, info.value_bytes, writable)
        .map_err(|source| ProbeError::Map { map: name, source })
}

pub(super) struct MapInfo {
    pub(super) value_bytes: usize,
    pub(super) entries: usize,
    pub(super) memory: u64,
}

/// A map's shape and memory, from the kernel's description of its descriptor: the library keeps
/// the first to itself and does not ask for the second.
pub(super) fn map_info(map: &Map) -> Option<MapInfo> {
    use std::os::fd::AsRawFd as _;
    let (Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuHashMap(data)
    | Map::PerCpuLruHashMap(data)
    | Map::RingBuf(data)) = map
    else {
        return None;
    };
    let fd = data.fd().as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let number = |name: &str| -> Option<u64> {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    Some(MapInfo {
        value_bytes: number("value_size:")? as usize,
        entries: number("max_entries:")? as usize,
        memory: number("memlock:")?,
    })
}
