use super::*;
use proptest::prelude::*;

/// Builds BTF by hand: records and names, in the file's own layout.
#[derive(Default)]
struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Blob {
    fn new() -> Self {
        Self {
            strings: vec![0],
            ..Self::default()
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
    }

    fn record(&mut self, name: &str, kind: u32, count: u32, flag: bool, target: u32) -> u32 {
        let name = self.name(name);
        self.words(&[name, u32::from(flag) << 31 | kind << 24 | count, target]);
        self.count += 1;
        self.count
    }

    fn int(&mut self) -> u32 {
        let id = self.record("int", 1, 0, false, 4);
        self.words(&[32]);
        id
    }

    /// Members: name, type, the offset's raw word.
    fn structure(
        &mut self,
        name: &str,
        kind: u32,
        flag: bool,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let id = self.record(name, kind, members.len() as u32, flag, 64);
        for (name, target, offset) in members {
            let name = self.name(name);
            self.words(&[name, *target, *offset]);
        }
        id
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}

/// `struct inner { int a; union { int b; struct { int pad; int c; }; }; }`, a typedef of const of
/// it inside `struct outer`, and one member with a bit field.
fn sample() -> Vec<u8> {
    let mut blob = Blob::new();
    let int = blob.int();
    let deep = blob.structure("", STRUCT, false, &[("pad", int, 0), ("c", int, 32)]);
    let union = blob.structure("", UNION, false, &[("b", int, 0), ("", deep, 0)]);
    let inner = blob.structure("inner", STRUCT, false, &[("a", int, 0), ("", union, 32)]);
    let constant = blob.record("", CONST, 0, false, inner);
    let alias = blob.record("inner_t", TYPEDEF, 0, false, constant);
    blob.structure(
        "outer",
        STRUCT,
        true,
        &[
            ("flags", int, 3 << 24 | 5),
            ("x", int, 32),
            ("nested", alias, 64),
        ],
    );
    blob.structure(
        "twice",
        STRUCT,
        false,
        &[("same", int, 64), ("other", int, 0)],
    );
    blob.structure(
        "twice",
        STRUCT,
        false,
        &[("same", int, 64), ("other", int, 32)],
    );
    blob.bytes()
}

#[test]
fn offsets_add_up_through_names_typedefs_and_anonymous_members() {
    let bytes = sample();
    let types = Types::parse(&bytes).unwrap();
    for (structure, member, offset) in [
        ("inner", "a", 0),
        ("inner", "b", 4),
        ("inner", "c", 8),
        ("outer", "x", 4),
        ("outer", "nested", 8),
        ("outer", "nested.a", 8),
        ("outer", "nested.c", 16),
        ("twice", "same", 8),
    ] {
        assert_eq!(
            types.offset(structure, member).unwrap(),
            offset,
            "{structure}.{member}"
        );
    }
}

#[test]
fn what_is_missing_is_named() {
    let bytes = sample();
    let types = Types::parse(&bytes).unwrap();
    let text = |structure, member| types.offset(structure, member).unwrap_err().to_string();
    assert_eq!(text("absent", "a"), "the kernel has no struct absent");
    assert_eq!(
        text("inner", "z"),
        "the kernel's struct inner has no member z"
    );
    assert_eq!(
        text("inner", "a.z"),
        "the kernel's struct inner has no member a.z"
    );
    assert_eq!(
        text("inner", ""),
        "the kernel's struct inner has no member "
    );
    assert!(text("outer", "flags").contains("bit field"));
    assert!(text("twice", "other").contains("disagree"));
}

#[test]
fn a_struct_that_contains_itself_is_an_error_and_not_a_hang() {
    let mut blob = Blob::new();
    let members: Vec<(&str, u32, u32)> = vec![("", 1, 0); 60_000];
    blob.structure("loop", STRUCT, false, &members);
    let bytes = blob.bytes();
    let types = Types::parse(&bytes).unwrap();
    assert!(matches!(
        types.offset("loop", "x"),
        Err(BtfError::Malformed(_))
    ));
}

#[test]
fn a_typedef_of_itself_has_no_members() {
    let mut blob = Blob::new();
    let alias = blob.record("a", TYPEDEF, 0, false, 1);
    blob.structure("s", STRUCT, false, &[("m", alias, 0)]);
    let bytes = blob.bytes();
    let types = Types::parse(&bytes).unwrap();
    assert!(matches!(
        types.offset("s", "m.x"),
        Err(BtfError::NoMember { .. })
    ));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = read(Path::new("/nonexistent/vmlinux")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/vmlinux"));
}

#[test]
fn the_running_kernels_own_structs_are_found() {
    let Ok(bytes) = read(Path::new(VMLINUX)) else {
        println!("skipped: no {VMLINUX}");
        return;
    };
    let types = Types::parse(&bytes).unwrap();
    let offset = |structure, member| types.offset(structure, member).unwrap();
    // Neighbours in every kernel: include/linux/sched.h, include/net/sock.h.
    assert_eq!(
        offset("task_struct", "tgid"),
        offset("task_struct", "pid") + 4
    );
    assert_eq!(offset("sock", "__sk_common"), 0);
    assert_eq!(
        offset("sock", "__sk_common.skc_num"),
        offset("sock_common", "skc_num")
    );
    assert_eq!(
        offset("sock_common", "skc_num"),
        offset("sock_common", "skc_dport") + 2
    );
    assert!(offset("net", "ns.inum") >= offset("net", "ns"));
}

#[test]
fn no_truncation_of_a_real_file_panics() {
    let Ok(bytes) = read(Path::new(VMLINUX)) else {
        println!("skipped: no {VMLINUX}");
        return;
    };
    for length in (0..200).chain((200..bytes.len()).step_by(bytes.len() / 40)) {
        assert!(Types::parse(&bytes[..length]).is_err(), "{length} bytes");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = Types::parse(&bytes);
    }

    #[test]
    fn a_damaged_file_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = sample();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let end = cut.index(bytes.len() * 4);
        bytes.truncate(end);
        if let Ok(types) = Types::parse(&bytes) {
            for (structure, member) in [("outer", "nested.c"), ("inner", "c"), ("twice", "same")] {
                let _ = types.offset(structure, member);
            }
        }
    }
}
