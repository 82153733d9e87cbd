use super::super::policy::Policy;
use super::*;

/// What the kernel says: the user, real and effective, and who is at the other end.
type Facts = (u32, u32, Result<Option<u32>, Error>);

fn facts(real: u32, peer: Option<Result<u32, Error>>) -> Facts {
    (real, real, peer.transpose())
}

fn decided((real, effective, peer): Facts, sudo_uid: Option<&OsStr>) -> Result<u32, Error> {
    decide(real, effective, sudo_uid, || peer)
}

#[test]
fn who_asks() {
    let sudo = |value: &'static str| Some(OsStr::new(value));
    let alice = 1000;
    // (facts, SUDO_UID, the caller)
    let known = [
        (facts(0, None), None, 0),
        (facts(0, None), sudo("1000"), alice),
        (facts(0, None), sudo("0"), 0),
        (facts(0, Some(Ok(alice))), None, alice),
        (facts(0, Some(Ok(0))), None, 0),
        // sudo with a socket to a daemon of root, or with one that does not say anything.
        (facts(0, Some(Ok(0))), sudo("1000"), alice),
        (facts(0, Some(Err(Error::said(NOBODY)))), sudo("1000"), alice),
    ];
    for (number, (facts, sudo_uid, uid)) in known.into_iter().enumerate() {
        assert_eq!(decided(facts, sudo_uid).unwrap(), uid, "case {number}");
    }
    for value in ["", "-1", "+1000", " 1000", "1000 ", "0x0", "4294967295", "4294967296", "root", "1e3"] {
        assert!(is_error(decided(facts(0, None), sudo(value)), "SUDO_UID"), "{value:?}");
    }
    let bytes = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"10\xff");
    assert!(is_error(decided(facts(0, None), Some(bytes)), "SUDO_UID"));
    assert!(is_error(decided(facts(0, Some(Err(Error::said(NOBODY)))), None), NOBODY));
    // A setuid bit, file capabilities, or neither.
    for (real, effective) in [(alice, 0), (0, alice), (alice, 1001), (alice, alice)] {
        for value in [None, sudo("0"), sudo("1000")] {
            let facts = (real, effective, Ok(None));
            assert!(is_error(decided(facts, value), "must be started by root"), "{real} {effective}");
        }
    }
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    alice:x:1000:1000:A:/home/alice:/bin/sh\nalias:x:1000:0::/:/bin/sh\n\
    bob:x:1001:100::/:\n# comment\n+::::::\nshort:x:1002\nsigned:x:+1003:0:::\nhex:x:0x3e8:0:::\n:x:1004:0:::\n\
    long:x:1005:0::::more\nnogid:x:1006::::\n";
const GROUP: &str = "root:x:0:\nalice:x:1000:\nusers:x:100:alice\nprepull:x:500:bob,alice\nempty:x:501:\n\
    almost:x:502:alice2,ali,bob \nalias:x:503:alias\n+:::\nshort:x:504\nbad:x:-1:alice\n:x:505:alice\nlong:x:506:alice:\n";

#[test]
fn names_and_groups() {
    let known = |uid| Caller::known_as(uid, PASSWD, GROUP);
    let groups = |uid| known(uid).groups.into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(known(1000).name.as_deref(), Some("alice"));
    assert_eq!(groups(1000), ["alice", "users", "prepull"]);
    assert_eq!(groups(1001), ["users", "prepull"]);
    assert_eq!(groups(0), ["root"]);
    // Lines that are not as they should be name nobody, and without a name nobody is in a group.
    for uid in [1002, 1003, 1004, 1005, 1006, 2000, u32::MAX] {
        assert_eq!(known(uid), Caller { uid, name: None, groups: Vec::new() });
    }
    // An empty member is not a user without a name.
    assert!(Caller::known_as(7, "", "g:x:7:\n").groups.is_empty());
}

#[test]
fn entries_are_for_those_whom_they_name() {
    let text = ["user = 'alice'", "user = 1000", "group = 'prepull'", "group = 100", "user = '1000'", "user = 'alias'"];
    let text =
        text.map(|who| format!("[[allow]]\n{who}\nroot = '/{}'\nkind = 'storage'\n", who.replace(['\'', ' '], "")));
    let policy = Policy::parse(&text.concat()).unwrap();
    let roots = |uid| {
        let caller = Caller::known_as(uid, PASSWD, GROUP);
        caller.allowed(&policy).into_iter().map(|entry| entry.root.clone()).collect::<Vec<_>>()
    };
    assert_eq!(roots(1000), ["/user=alice", "/user=1000", "/group=prepull", "/group=100"]);
    assert_eq!(roots(1001), ["/group=prepull", "/group=100"]);
    assert!(roots(0).is_empty() && roots(4242).is_empty());
}

fn is_error(decided: Result<u32, Error>, what: &str) -> bool {
    decided.is_err_and(|error| error.to_string().contains(what))
}
