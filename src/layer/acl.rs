//! POSIX ACLs as the kernel takes them from `system.posix_acl_access` and `_default` (Linux `fs/posix_acl.c`).

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// `ACL_UNDEFINED_ID`: what stands where an entry is for nobody in particular.
const NOBODY: u32 = u32::MAX;

/// Why a value is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum NoAcl {
    /// `EOPNOTSUPP`: another version.
    Unsupported,
    /// `EINVAL`.
    Invalid,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// An ACL that the kernel would take; without entries it stands for none.
#[derive(Debug, Clone)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// `posix_acl_from_xattr` and `posix_acl_valid`.
    ///
    /// # Errors
    /// What `setxattr` would give.
    pub fn parse(value: &[u8]) -> Result<Self, NoAcl> {
        let (version, entries) = value.split_first_chunk::<4>().ok_or(NoAcl::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(NoAcl::Unsupported);
        }
        let (entries, []) = entries.as_chunks::<8>() else { return Err(NoAcl::Invalid) };
        let entry = |bytes: &[u8; 8]| {
            let [tag_low, tag_high, perm_low, perm_high, id @ ..] = *bytes;
            let tag = u16::from_le_bytes([tag_low, tag_high]);
            let id = if matches!(tag, USER | GROUP) { u32::from_le_bytes(id) } else { NOBODY };
            Entry { tag, perm: u16::from_le_bytes([perm_low, perm_high]), id }
        };
        let acl = Self(entries.iter().map(entry).collect());
        if acl.is_valid() { Ok(acl) } else { Err(NoAcl::Invalid) }
    }

    fn is_valid(&self) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let mut allowed = USER_OBJ;
        let mut needs_mask = false;
        for entry in &self.0 {
            if entry.perm > 7 || entry.tag & allowed == 0 || !entry.tag.is_power_of_two() {
                return false;
            }
            let named = matches!(entry.tag, USER | GROUP);
            if named && entry.id == NOBODY {
                return false;
            }
            needs_mask |= named;
            allowed = match entry.tag {
                USER_OBJ | USER => USER | GROUP_OBJ,
                GROUP_OBJ | GROUP if needs_mask => GROUP | MASK,
                GROUP_OBJ => GROUP | MASK | OTHER,
                MASK => OTHER,
                GROUP => GROUP | MASK,
                _ => 0,
            };
        }
        allowed == 0
    }

    /// Whether it stands for no ACL at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `posix_acl_equiv_mode`: the permission bits of a file that gets it, and whether they say all that it says.
    #[must_use]
    pub fn mode(&self, mut mode: u16) -> (u16, bool) {
        let mut is_all = true;
        for entry in &self.0 {
            match entry.tag {
                USER_OBJ => mode = mode & !0o700 | entry.perm << 6,
                GROUP_OBJ => mode = mode & !0o070 | entry.perm << 3,
                OTHER => mode = mode & !0o007 | entry.perm,
                MASK => {
                    mode = mode & !0o070 | entry.perm << 3;
                    is_all = false;
                }
                _ => is_all = false,
            }
        }
        (mode, is_all)
    }

    /// `posix_acl_chmod`.
    pub fn chmod(&mut self, mode: u16) {
        let has_mask = self.0.iter().any(|entry| entry.tag == MASK);
        for entry in &mut self.0 {
            match entry.tag {
                USER_OBJ => entry.perm = mode >> 6 & 7,
                GROUP_OBJ if !has_mask => entry.perm = mode >> 3 & 7,
                MASK => entry.perm = mode >> 3 & 7,
                OTHER => entry.perm = mode & 7,
                _ => {}
            }
        }
    }

    /// As `getxattr` gives it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.perm.to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect()).encode()
    }

    #[test]
    fn acls_are_judged_as_the_kernel_judges_them() {
        let base = [(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)];
        assert_eq!(Acl::parse(&value(&base)).unwrap().mode(0o4777), (0o4640, true));
        let named = [base[0], (USER, 7, 1000), base[1], (MASK, 5, NOBODY), base[2]];
        let mut acl = Acl::parse(&value(&named)).unwrap();
        assert_eq!(acl.mode(0), (0o650, false));
        acl.chmod(0o711);
        assert_eq!(acl.mode(0), (0o711, false));
        assert!(Acl::parse(&value(&[])).unwrap().is_empty());
        let no_mask = [base[0], (USER, 7, 1000), base[1], base[2]];
        let no_id = [base[0], (USER, 7, NOBODY), base[1], (MASK, 5, NOBODY), base[2]];
        for bad in [&base[..2], &base[1..], &no_mask, &no_id, &[(USER_OBJ, 8, 0), base[1], base[2]]] {
            assert_eq!(Acl::parse(&value(bad)).unwrap_err(), NoAcl::Invalid, "{bad:?}");
        }
        assert_eq!(Acl::parse(b"\x01\0\0\0").unwrap_err(), NoAcl::Unsupported);
        assert_eq!(Acl::parse(b"\x02\0\0").unwrap_err(), NoAcl::Invalid);
        assert_eq!(Acl::parse(b"\x02\0\0\0\x01").unwrap_err(), NoAcl::Invalid);
    }
}
