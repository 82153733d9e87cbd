//! The ways to the helper, for somebody who is not root.

use crate::command::needs_root;
use crate::privilege::Jail;

#[test]
fn by_a_socket_the_kernel_says_who_asks() {
    if !needs_root("privilege::ways::by_a_socket_the_kernel_says_who_asks") {
        return;
    }
    let jail = Jail::new("");
    // What systemd does for prepull-helper.socket and prepull-helper@.service.
    jail.ok(&format!(
        r#"mkdir -p "$at/run"; mount -t tmpfs tmpfs /run; mkdir -p /run/prepull
        cp -r {repository}/tests/images "$at/home/"; chown -R {user} "$at/home"
        (cd "$at/vm"; exec systemd-socket-activate --accept --inetd -l /run/prepull/other.sock "$at/bin/prepull-helper" stdio 2>"$at/activate") &
        for n in $(seq 100); do test -S /run/prepull/other.sock && break; sleep 0.05; done
        chmod 666 /run/prepull/other.sock
        install() {{ "$@" "$at/bin/prepull" install --quiet --via socket --socket /run/prepull/other.sock --root "$root" oci:$at/home/images/hello:v1; }}
        root=$at/vm; install as; status=$?
        # Another directory than the one that is served, and another user.
        mkdir -p "$at/other"; root=$at/other; install as 2>"$at/other.said"; other=$?
        root=$at/vm; install setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/ 2>"$at/nobody.said"; nobody=$?
        kill %1
        test $status = 0 || {{ cat "$at/activate" >&2; exit 1; }}
        test $other = 1 && grep -q "another directory" "$at/other.said" || {{ cat "$at/other.said" >&2; exit 2; }}
        test $nobody = 1 && grep -q "does not allow the caller" "$at/nobody.said" || {{ cat "$at/nobody.said" >&2; exit 3; }}
        as "$at/bin/prepull" doctor --root "$at/vm" --helper "$at/bin/prepull-helper" >"$at/doctor" 2>&1
        "$at/bin/prepull" verify --quiet "$at/vm" >/dev/null || exit 4"#,
        repository = crate::command::REPOSITORY,
        user = super::USER,
    ));
    let doctor = fs_err::read_to_string(jail.at("doctor")).unwrap();
    assert!(doctor.contains("  sudo               works\n"), "{doctor}");
    assert!(doctor.contains("  this process       no: not root"), "{doctor}");
    assert!(doctor.contains("1 of its 2 entries are for this user"), "{doctor}");
}
