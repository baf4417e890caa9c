//! Which devices are the GPU's: NVIDIA's driver has a fixed number for its control and GPU devices,
//! and takes a free one for unified memory.

use std::fs;

/// The kernel's number for NVIDIA's devices (`Documentation/admin-guide/devices.txt`).
const CONTROL: u32 = 195;
const MEMORY_NAME: &str = "nvidia-uvm";
const DEVICES: &str = "/proc/devices";

/// Major numbers of the GPU's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuDevices {
    /// The GPUs and their control device.
    pub control: u32,
    /// Unified memory, while its module is loaded.
    pub memory: Option<u32>,
}

impl GpuDevices {
    /// As they are at present. Unified memory whose module is loaded later is not known.
    pub fn find() -> Self {
        let text = fs::read_to_string(DEVICES).unwrap_or_default();
        Self {
            control: CONTROL,
            memory: memory(&text),
        }
    }
}

/// The major number of unified memory in the text of `/proc/devices`.
fn memory(devices: &str) -> Option<u32> {
    let characters = devices.split("Block devices").next()?;
    characters.lines().find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        if name == MEMORY_NAME {
            number.parse().ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unified_memory_is_found_where_its_module_is_loaded() {
        let devices = "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n\
                       234 nvidia-uvm-other\n507 nvidia-uvm\n\nBlock devices:\n253 nvidia-uvm\n";
        assert_eq!(memory(devices), Some(507));
        assert_eq!(memory("Character devices:\n  1 mem\n"), None);
    }
}
