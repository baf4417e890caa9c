use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

/// A machine on which everything is fine, as files.
fn machine() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| put(&root, path, text);
    write("proc/sys/kernel/osrelease", "6.1.0-50-amd64\n");
    write(
        "proc/thread-self/status",
        "Name:\tperjoule\nUid:\t1000\t1000\t1000\t1000\nCapEff:\t000000c000000000\n",
    );
    write("proc/self/uid_map", "         0          0 4294967295\n");
    write("proc/sys/kernel/unprivileged_bpf_disabled", "2\n");
    write("proc/sys/kernel/perf_event_paranoid", "3\n");
    write("sys/kernel/btf/vmlinux", "types");
    write(
        "sys/kernel/security/lockdown",
        "none [integrity] confidentiality\n",
    );
    fs::create_dir_all(root.path().join("proc/self/ns")).unwrap();
    symlink(FIRST_PID_NAMESPACE, root.path().join("proc/self/ns/pid")).unwrap();
    root
}

fn put(root: &TempDir, path: &str, text: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn of(root: &TempDir, id: &str) -> Finding {
    let checks = check(root.path());
    checks.into_iter().find(|check| check.id == id).unwrap()
}

fn assert_fails(check: &Finding, found: &str, fix: &str) {
    assert_eq!(check.status, Status::Fail, "{check:?}");
    assert!(check.found.contains(found), "{check:?}");
    assert!(check.fix.as_ref().unwrap().contains(fix), "{check:?}");
}

#[test]
fn a_fitting_machine_passes_and_nothing_is_to_be_done() {
    let root = machine();
    for check in check(root.path()) {
        assert_eq!(check.status, Status::Pass, "{check:?}");
        assert_eq!(check.fix, None);
    }
}

#[test]
fn the_missing_capability_is_named() {
    let root = machine();
    for (capabilities, missing) in [
        ("0000000000000000", "CAP_BPF and CAP_PERFMON"),
        ("0000004000000000", "lacks CAP_BPF"),
        ("0000008000000000", "lacks CAP_PERFMON"),
    ] {
        put(
            &root,
            "proc/thread-self/status",
            &format!("Uid:\t1000\t0\nCapEff:\t{capabilities}\n"),
        );
        assert_fails(&of(&root, "privileges"), missing, "as root");
    }
}

#[test]
fn counters_need_a_capability_unless_the_kernel_lets_everybody_open_them() {
    let root = machine();
    let status = "Uid:\t1000\t0\nCapEff:\t0000000000000000\n";
    put(&root, "proc/thread-self/status", status);
    let check = of(&root, "perf_event_paranoid");
    assert_eq!(check.status, Status::Warn);
    assert!(
        check.fix.as_ref().unwrap().contains("CAP_PERFMON"),
        "{check:?}"
    );
    put(&root, "proc/sys/kernel/perf_event_paranoid", "-1\n");
    assert_eq!(of(&root, "perf_event_paranoid").status, Status::Pass);
}

#[test]
fn the_old_capability_for_everything_is_enough() {
    let root = machine();
    put(
        &root,
        "proc/thread-self/status",
        "Uid:\t0\nCapEff:\t0000000000200000\n",
    );
    let check = of(&root, "privileges");
    assert_eq!(check.status, Status::Pass);
    assert!(check.found.contains("CAP_SYS_ADMIN"));
}

#[test]
fn a_user_namespaces_capabilities_do_not_count() {
    let root = machine();
    put(&root, "proc/self/uid_map", "0 100000 65536\n");
    assert_fails(&of(&root, "privileges"), "user namespace", "outside");
}

#[test]
fn an_old_kernel_fails_and_the_oldest_supported_passes() {
    let root = machine();
    for (release, fine) in [
        ("4.18.0-513.el8", false),
        ("5.14.21-150500-default", false),
        ("5.15.0-generic", true),
        ("6.18.44", true),
        ("10.0-rc1", true),
        ("nonsense", false),
    ] {
        put(&root, "proc/sys/kernel/osrelease", release);
        let check = of(&root, "kernel");
        assert_eq!(check.status == Status::Pass, fine, "{check:?}");
    }
}

#[test]
fn missing_types_name_the_kernel_option() {
    let root = machine();
    fs::remove_file(root.path().join("sys/kernel/btf/vmlinux")).unwrap();
    assert_fails(
        &of(&root, "btf"),
        "/sys/kernel/btf/vmlinux",
        "CONFIG_DEBUG_INFO_BTF",
    );
}

#[test]
fn a_locked_down_kernel_fails_only_in_confidentiality() {
    let root = machine();
    put(
        &root,
        "sys/kernel/security/lockdown",
        "none integrity [confidentiality]",
    );
    assert_fails(&of(&root, "lockdown"), "confidentiality", "lockdown=");
    fs::remove_file(root.path().join("sys/kernel/security/lockdown")).unwrap();
    assert_eq!(of(&root, "lockdown").status, Status::Pass);
}

#[test]
fn a_containers_own_process_ids_fail() {
    let root = machine();
    let link = root.path().join("proc/self/ns/pid");
    fs::remove_file(&link).unwrap();
    symlink("pid:[4026532000]", &link).unwrap();
    assert_fails(&of(&root, "pid_namespace"), "4026532000", "hostPID");
}

#[test]
fn an_empty_root_gives_every_check_and_no_panic() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(check(root.path()).len(), 8);
    assert!(
        check(root.path())
            .iter()
            .all(|check| check.status == Status::Pass || check.fix.is_some())
    );
}
