//! Tar archives block by block, so that a header can be anything at all: no tests of its own.

/// The time of an entry that sets none.
pub const MTIME: i64 = 1_700_000_000;

/// Which header format is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Ustar,
    Gnu,
    V7,
    Star,
}

/// How the checksum is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    Right,
    Signed,
    Wrong,
}

/// An entry under construction.
#[derive(Debug, Clone)]
pub struct Raw {
    name: Vec<u8>,
    typeflag: u8,
    mode: i64,
    uid: i64,
    gid: i64,
    mtime: i64,
    size: Option<u64>,
    link: Vec<u8>,
    data: Vec<u8>,
    device: (i64, i64),
    pax: Vec<(Vec<u8>, Vec<u8>)>,
    prefix: Vec<u8>,
    patches: Vec<(usize, Vec<u8>)>,
    format: Format,
    sum: Sum,
    before: Vec<u8>,
}

fn raw(name: impl AsRef<[u8]>, typeflag: u8, mode: i64) -> Raw {
    Raw {
        name: name.as_ref().to_vec(),
        typeflag,
        mode,
        uid: 0,
        gid: 0,
        mtime: MTIME,
        size: None,
        link: Vec::new(),
        data: Vec::new(),
        device: (0, 0),
        pax: Vec::new(),
        prefix: Vec::new(),
        patches: Vec::new(),
        format: Format::Ustar,
        sum: Sum::Right,
        before: Vec::new(),
    }
}

pub fn file(name: impl AsRef<[u8]>) -> Raw {
    let data = name.as_ref().to_vec();
    raw(name, b'0', 0o644).data(data)
}

pub fn dir(name: impl AsRef<[u8]>) -> Raw {
    raw(name, b'5', 0o755)
}

pub fn link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Raw {
    raw(name, b'1', 0o644).target(target)
}

pub fn sym(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Raw {
    raw(name, b'2', 0o777).target(target)
}

pub fn char(name: impl AsRef<[u8]>, major: i64, minor: i64) -> Raw {
    raw(name, b'3', 0o600).device(major, minor)
}

pub fn block(name: impl AsRef<[u8]>, major: i64, minor: i64) -> Raw {
    raw(name, b'4', 0o660).device(major, minor)
}

pub fn fifo(name: impl AsRef<[u8]>) -> Raw {
    raw(name, b'6', 0o640)
}

/// An empty file: what markers are.
pub fn mark(name: impl AsRef<[u8]>) -> Raw {
    raw(name, b'0', 0o644)
}

/// An entry of any type.
pub fn of_type(name: impl AsRef<[u8]>, typeflag: u8) -> Raw {
    raw(name, typeflag, 0o644)
}

impl Raw {
    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }
    pub fn mode(mut self, mode: i64) -> Self {
        self.mode = mode;
        self
    }
    pub fn owner(mut self, uid: i64, gid: i64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
    pub fn mtime(mut self, mtime: i64) -> Self {
        self.mtime = mtime;
        self
    }
    /// Says this size in the header, whatever follows.
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }
    pub fn target(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }
    pub fn device(mut self, major: i64, minor: i64) -> Self {
        self.device = (major, minor);
        self
    }
    pub fn typeflag(mut self, typeflag: u8) -> Self {
        self.typeflag = typeflag;
        self
    }
    /// A PAX record.
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = prefix.as_ref().to_vec();
        self
    }
    /// These bytes at this offset of the header block; the checksum is made after it.
    pub fn patch(mut self, offset: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.patches.push((offset, bytes.as_ref().to_vec()));
        self
    }
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }
    pub fn sum(mut self, sum: Sum) -> Self {
        self.sum = sum;
        self
    }
    /// An extended header of type `L`, `K`, `x` or `g` with this body in front.
    pub fn after(mut self, typeflag: u8, body: impl AsRef<[u8]>) -> Self {
        self.before.extend(extended(typeflag, body.as_ref()));
        self
    }

    /// The name, as far as it is text.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    pub fn kind(&self) -> u8 {
        self.typeflag
    }

    /// The entry as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.before.clone();
        let mut records = Vec::new();
        for (key, value) in &self.pax {
            records.extend(record(key, value));
        }
        if self.name.len() > 100 {
            records.extend(record(b"path", &self.name));
        }
        if self.link.len() > 100 {
            records.extend(record(b"linkpath", &self.link));
        }
        if !records.is_empty() {
            out.extend(extended(b'x', &records));
        }
        let mut block = [0u8; 512];
        let mut put = |offset: usize, bytes: &[u8]| block[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &number(self.mode, 8));
        put(108, &number(self.uid, 8));
        put(116, &number(self.gid, 8));
        put(124, &number(self.size.unwrap_or(self.data.len() as u64) as i64, 12));
        put(136, &number(self.mtime, 12));
        put(156, &[self.typeflag]);
        put(157, &self.link[..self.link.len().min(100)]);
        match self.format {
            Format::Ustar => put(257, b"ustar\x0000"),
            Format::Gnu => put(257, b"ustar  \0"),
            Format::Star => {
                put(257, b"ustar\x0000");
                put(476, b"14524700000\0");
                put(488, b"14524700000\0");
                put(508, b"tar\0");
            }
            Format::V7 => {}
        }
        if self.format != Format::V7 {
            put(329, &number(self.device.0, 8));
            put(337, &number(self.device.1, 8));
        }
        put(345, &self.prefix);
        for (offset, bytes) in &self.patches {
            put(*offset, bytes);
        }
        checksum(&mut block, self.sum);
        out.extend_from_slice(&block);
        out.extend_from_slice(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// One PAX record; its length counts itself.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn extended(typeflag: u8, body: &[u8]) -> Vec<u8> {
    let (name, format) = match typeflag {
        b'L' | b'K' => ("././@LongLink", Format::Gnu),
        b'g' => ("pax_global_header", Format::Ustar),
        _ => ("PaxHeaders/x", Format::Ustar),
    };
    raw(name, typeflag, 0o644).data(body).format(format).encode()
}

fn number(value: i64, width: usize) -> Vec<u8> {
    if value >= 0 && value < 1 << (3 * (width - 1)).min(62) {
        return format!("{value:0width$o}\0", width = width - 1).into_bytes();
    }
    let mut bytes = vec![if value < 0 { 0xff } else { 0 }; width];
    let all = value.to_be_bytes();
    let used = width.min(8);
    bytes[width - used..].copy_from_slice(&all[8 - used..]);
    bytes[0] |= 0x80;
    bytes
}

fn checksum(block: &mut [u8; 512], sum: Sum) {
    block[148..156].fill(b' ');
    let value: i64 = match sum {
        Sum::Signed => block.iter().map(|&byte| i64::from(byte as i8)).sum(),
        _ => block.iter().map(|&byte| i64::from(byte)).sum(),
    };
    let value = if sum == Sum::Wrong { value + 1 } else { value };
    block[148..156].copy_from_slice(format!("{value:06o}\0 ").as_bytes());
}

/// The entries one after the other, without an end.
pub fn entries(entries: &[Raw]) -> Vec<u8> {
    entries.iter().flat_map(Raw::encode).collect()
}

/// A whole archive.
pub fn archive(list: &[Raw]) -> Vec<u8> {
    let mut bytes = entries(list);
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}
