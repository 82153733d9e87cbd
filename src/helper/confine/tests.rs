use super::super::policy::{Id, Kind};
use super::*;

/// What a kernel sees of a system call: `struct seccomp_data`.
#[derive(Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

fn call(number: i64, arguments: [u64; 6]) -> Call {
    Call { number: number as u32, arch: ARCH, arguments }
}

/// Runs the program as the kernel does: whether the call is allowed. Otherwise the process must be killed.
fn allows(program: &BpfProgram, call: Call) -> bool {
    let mut data = [call.number.to_le_bytes(), call.arch.to_le_bytes(), [0; 4], [0; 4]].concat();
    data.extend(call.arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let step = &program[at];
        at += 1;
        // linux/bpf_common.h
        match step.code {
            0x20 => accumulator = u32::from_le_bytes(data[step.k as usize..][..4].try_into().unwrap()),
            0x54 => accumulator &= step.k,
            0x05 => at += step.k as usize,
            0x15 | 0x25 | 0x35 => {
                let is_true = match step.code {
                    0x15 => accumulator == step.k,
                    0x25 => accumulator > step.k,
                    _ => accumulator >= step.k,
                };
                at += usize::from(if is_true { step.jt } else { step.jf });
            }
            0x06 => {
                assert!([0x7fff_0000, 0x8000_0000].contains(&step.k), "allowed or killed, nothing else");
                return step.k == 0x7fff_0000;
            }
            code => panic!("instruction {code:#x}"),
        }
    }
}

#[test]
fn no_other_system_call_is_allowed() {
    let conditional =
        [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_mknodat, libc::SYS_fcntl, libc::SYS_tgkill, libc::SYS_tkill];
    for devices in [false, true] {
        let program = filter(devices).unwrap();
        // Beyond all that are there, and x86's other two sets of numbers.
        for number in (0..2000).chain(0x4000_0000..0x4000_0800) {
            let allowed = allows(&program, call(number, [u64::MAX; 6]));
            assert_eq!(allowed, ALLOWED.contains(&number) && !conditional.contains(&number), "{number}");
        }
        for arch in [0x4000_0003, 0x4000_0028, ARCH ^ 1] {
            for number in (0..500).chain([NO_CALL]) {
                assert!(!allows(&program, Call { arch, ..call(number, [0; 6]) }), "{arch:#x} {number}");
            }
        }
        assert!(allows(&program, call(-1, [0; 6])), "what strace makes of a call that it lets fail");
        assert!(!allows(&program, call(-2, [0; 6])));
    }
}

#[test]
fn calls_that_no_wrapper_without_unsafe_makes() {
    let program = filter(true).unwrap();
    let forbidden = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_ioctl,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_setns,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_pidfd_getfd,
        libc::SYS_process_madvise,
        libc::SYS_memfd_secret,
        libc::SYS_pkey_mprotect,
        libc::SYS_remap_file_pages,
        libc::SYS_shmat,
        libc::SYS_setxattr,
        libc::SYS_fchdir,
    ];
    for number in forbidden {
        assert!(!allows(&program, call(number, [0; 6])), "{number}");
    }
}

#[test]
fn arguments_decide() {
    let (plain, devices) = (filter(false).unwrap(), filter(true).unwrap());
    let own = u64::from(std::process::id());
    let (read, exec) = (libc::PROT_READ as u64, libc::PROT_EXEC as u64);
    let mknod = |kind: u32, device: u64| call(libc::SYS_mknodat, [0, 0, u64::from(kind | 0o600), device, 0, 0]);
    // What the kernel does not look at, so that it must not matter here either.
    let high = 1 << 32;
    // (call, allowed, allowed with devices)
    let cases = [
        (call(libc::SYS_mmap, [0, 4096, read, 0, 0, 0]), true, true),
        (call(libc::SYS_mmap, [0, 4096, read | exec, 0, 0, 0]), false, false),
        (call(libc::SYS_mprotect, [0, 4096, read, 0, 0, 0]), true, true),
        (call(libc::SYS_mprotect, [0, 4096, exec | high, 0, 0, 0]), false, false),
        (mknod(libc::S_IFIFO, 0), true, true),
        (mknod(libc::S_IFIFO, 0x103), true, true),
        (mknod(libc::S_IFCHR, 0), true, true),
        (mknod(libc::S_IFCHR, high), true, true),
        (mknod(libc::S_IFCHR, 0x103), false, true),
        (mknod(libc::S_IFCHR, 0x103 | high), false, true),
        (mknod(libc::S_IFBLK, 0), false, true),
        (mknod(libc::S_IFBLK, 0x800), false, true),
        (mknod(libc::S_IFSOCK, 0), false, false),
        (mknod(libc::S_IFREG, 0), false, false),
        (mknod(0, 0), false, false),
        (call(libc::SYS_fcntl, [0, libc::F_OFD_SETLKW as u64, 0, 0, 0, 0]), true, true),
        (call(libc::SYS_fcntl, [0, libc::F_SETOWN as u64, 0, 0, 0, 0]), false, false),
        (call(libc::SYS_fcntl, [0, libc::F_SETFL as u64, 0, 0, 0, 0]), false, false),
        (call(libc::SYS_fcntl, [0, libc::F_NOTIFY as u64, 0, 0, 0, 0]), false, false),
        (call(libc::SYS_tgkill, [own, 1, 6, 0, 0, 0]), true, true),
        (call(libc::SYS_tgkill, [own, own, 9, 0, 0, 0]), false, false),
        (call(libc::SYS_tgkill, [1, 1, 6, 0, 0, 0]), false, false),
        (call(libc::SYS_tkill, [own, 6, 0, 0, 0, 0]), true, true),
        (call(libc::SYS_tkill, [1, 6, 0, 0, 0, 0]), false, false),
    ];
    for (number, (call, alone, with_devices)) in cases.into_iter().enumerate() {
        assert_eq!((allows(&plain, call), allows(&devices, call)), (alone, with_devices), "case {number}");
    }
}

#[test]
fn who_can_reach_a_setuid_program() {
    let entry = |kind, keeps, devices| Allow {
        user: Some(Id::Number(1000)),
        group: None,
        root: "/srv".into(),
        kind,
        graphroot: Some("/s".into()),
        max_bytes: 0,
        max_store_bytes: 0,
        keep_free: 0,
        additional: None,
        max_inodes: 0,
        max_seconds: 0,
        devices,
        suid: keeps,
        filecaps: keeps,
    };
    let (none, nosuid, nodev) = (StatVfsMountFlags::empty(), StatVfsMountFlags::NOSUID, StatVfsMountFlags::NODEV);
    let tree = |keeps, devices| entry(Kind::Rootfs, keeps, devices);
    // (entry, owner, mode, mount, reachable)
    let cases = [
        (tree(true, false), 0, 0o40755, none, true),
        (tree(true, false), 0, 0o40755, nodev, true),
        (tree(true, false), 0, 0o40755, nosuid, false),
        (tree(true, false), 0, 0o40700, none, false),
        (tree(true, false), 0, 0o40710, none, true),
        (tree(true, false), 1000, 0o40700, none, true),
        (tree(false, false), 0, 0o40755, none, false),
        (tree(false, true), 0, 0o40755, nosuid, true),
        (tree(false, true), 0, 0o40755, nodev, false),
        (tree(true, true), 0, 0o40755, nosuid | nodev, false),
        (entry(Kind::Storage, true, true), 0, 0o40755, none, true),
        (entry(Kind::Storage, true, true), 0, 0o40755, nosuid | nodev, false),
        (entry(Kind::Storage, true, true), 0, 0o40700, none, false),
        (entry(Kind::Storage, false, false), 1000, 0o40755, none, false),
    ];
    for (number, (entry, uid, mode, mount, reachable)) in cases.into_iter().enumerate() {
        assert_eq!(is_reachable(&entry, &[(uid, mode)], mount), reachable, "case {number}");
    }
    // One closed directory is enough, at any place.
    let store = entry(Kind::Storage, true, false);
    for (way, reachable) in [
        (vec![(1000, 0o40777), (0, 0o40755), (0, 0o40700)], false),
        (vec![(0, 0o40700), (0, 0o40755), (0, 0o40755)], false),
        (vec![(1000, 0o40700), (0, 0o40755), (0, 0o40755)], true),
        (vec![], true),
    ] {
        assert_eq!(is_reachable(&store, &way, none), reachable, "{way:?}");
    }
}
