//! What the kernel sends to `prepull mount`, of a store that is all right: the replies are such as the kernel takes, files have the
//! bytes that they have, and whatever was handed out can be asked for.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use prepull::mount::wire::READ_MAX;
use prepull_fuzz::choice;
use prepull_fuzz::fuse::{Answered, EIO, exchange, list_all, look, name, opcode, range, request, walk, xattr};
use prepull_fuzz::stage::{Stage, stages};

struct Ready {
    stage: Stage,
    /// All inodes.
    nodes: Vec<u64>,
    /// Names of files and of attributes.
    names: Vec<Vec<u8>>,
    /// Where directories go on.
    offsets: Vec<u64>,
}

fn ready(stage: Stage) -> Ready {
    let nodes: Vec<u64> = walk(&stage.view, 1000).into_iter().collect();
    assert!(nodes.len() > 150);
    let mut names: Vec<Vec<u8>> = NAMES.map(<[u8]>::to_vec).to_vec();
    let mut offsets = vec![0, 1, u64::MAX];
    for node in &nodes {
        if let Answered::List(listed) = exchange(&stage.view, &request(opcode::READDIR, *node, 0, &range(0, 1 << 20))) {
            names.extend(listed.iter().map(|listed| listed.name.clone()));
            offsets.extend(listed.iter().map(|listed| listed.offset));
        }
    }
    Ready { stage, nodes, names, offsets }
}

static READY: OnceLock<[Ready; 2]> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = choice(data) else { return };
    let ready = &READY.get_or_init(|| stages().map(ready))[usize::from(choice & 1)];
    if choice & 2 == 0 {
        ready.ask(rest);
    } else {
        rest.chunks(7).take(100).for_each(|step| ready.step(step));
    }
});

const NAMES: [&[u8]; 10] =
    [b".", b"..", b"overlay", b"diff", b"", b"a/b", b"user.a", b"trusted.overlay.opaque", b"security.capability", b"x"];

impl Ready {
    /// A request that seven bytes describe: what is done, with which node and which name or offset, how many bytes, and by whom.
    fn step(&self, step: &[u8]) {
        let byte = |at: usize| step.get(at).copied().unwrap_or_default();
        let word = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
        let mut node = self.nodes[usize::from(word(1)) % self.nodes.len()];
        if byte(6) & 0x80 != 0 {
            // Nobody was given this one.
            node ^= 1 << (byte(6) & 0x3f);
        }
        let uid = if byte(6) & 0x40 == 0 { 0 } else { 1000 };
        let named = &self.names[usize::from(word(3)) % self.names.len()];
        let offset = self.offsets[usize::from(word(3)) % self.offsets.len()];
        // Of a file: near both ends, and far behind it.
        let content = match byte(6) & 0x1f {
            0x1f => u64::MAX - u64::from(word(3)),
            shift => u64::from(word(3)) << shift,
        };
        let size = (u32::from(byte(5) & 7) + 9) << (byte(5) >> 3).min(22) >> 3;
        let bytes = match byte(0) % 12 {
            0 | 1 => request(opcode::LOOKUP, node, uid, &name(named)),
            2 => request(opcode::GETATTR, node, uid, &[0; 16]),
            3 => request(opcode::READLINK, node, uid, &[]),
            4 | 5 => request(opcode::READ, node, uid, &range(content, size)),
            6 => request(opcode::READDIR, node, uid, &range(offset, size)),
            7 => request(opcode::READDIRPLUS, node, uid, &range(offset, size)),
            8 => request(opcode::GETXATTR, node, uid, &xattr(size & 0xffff, named)),
            9 => request(opcode::LISTXATTR, node, uid, &xattr(size & 0xffff, b"")),
            10 => return self.pieces(node, size),
            _ => request(byte(3).into(), node, uid, step.get(4..).unwrap_or_default()),
        };
        self.ask(&bytes);
    }

    fn ask(&self, bytes: &[u8]) {
        let view = &self.stage.view;
        let answered = exchange(view, bytes);
        assert!(answered != Answered::Refused(EIO), "nothing is damaged");
        let number =
            |at: usize| bytes.get(at..at + 8).map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("eight")));
        let (Some(opcode), Some(node)) = (bytes.get(4..8), number(16)) else { return };
        let is_known = |node| assert!(self.nodes.binary_search(&node).is_ok(), "{node:x} was not found by walking");
        match answered {
            Answered::Entry(Some(attr)) | Answered::Attr(attr) => {
                look(view, &attr);
                is_known(attr.node);
            }
            Answered::List(listed) => listed.iter().for_each(|listed| is_known(listed.node)),
            Answered::Bytes(read) if opcode == opcode::READ.to_ne_bytes() => {
                let content = self.stage.files.get(&node).expect("it is no file, and has been read");
                let size = (number(56).expect("an offset and a size") as u32 as usize).min(READ_MAX);
                let offset = usize::try_from(number(48).expect("an offset")).unwrap_or(usize::MAX).min(content.len());
                let end = offset.saturating_add(size).min(content.len());
                assert!(read == content[offset..end], "{} bytes of {node:x}, not {}", read.len(), end - offset);
            }
            _ => {}
        }
    }

    /// In pieces as large as may be a directory has the same entries.
    fn pieces(&self, node: u64, size: u32) {
        let view = &self.stage.view;
        let asked = exchange(view, &request(opcode::GETATTR, node, 0, &[0; 16]));
        if matches!(asked, Answered::Attr(attr) if attr.is_directory()) {
            // The longest name has room in it.
            let size = size.max(512);
            assert_eq!(list_all(view, node, true, size), list_all(view, node, false, size));
        }
    }
}
