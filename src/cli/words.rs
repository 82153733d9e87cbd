//! Words of skopeo, podman, docker, crictl, ctr and crane. Those that mean the same here are taken as they are; all others lead to the
//! command that does it.

use std::ffi::{OsStr, OsString};

/// What becomes of a command's name that is not prepull's.
enum Word {
    /// The same command under another name, as the words that replace it.
    Same(&'static [&'static str]),
    /// Something that is done differently: the end of the message.
    Differently(&'static str),
}

use Word::{Differently, Same};

const FETCH: &str = "images are fetched where they are written (prepull make IMAGE: into a tar; prepull install --root DIR IMAGE: into a store; \
                     prepull mount DIR IMAGE: into a mount)";
const ARCHIVE_IN: &str = "an archive is an item like any other (prepull install --root DIR docker-archive:FILE, prepull make docker-archive:FILE)";
const ARCHIVE_OUT: &str = "prepull make -o FILE IMAGE writes a tar of a whole store; an archive for `podman load` is written by \
                           skopeo copy docker://IMAGE docker-archive:FILE";
const PUSH: &str = "prepull writes to no registry (skopeo copy oci:DIR docker://IMAGE)";
const LOGIN: &str = "prepull reads the credentials that `podman login`, `skopeo login` and `docker login` store (--authfile FILE, --creds)";
const CONTAINERS: &str =
    "prepull starts no containers (podman run, crictl runp; prepull mount --help shows how podman uses a mount)";
const BUILD: &str = "prepull changes no images (podman build, buildah; then prepull make oci:DIR=NAME:TAG)";
const REGISTRY: &str = "prepull lists no registry (skopeo list-tags docker://NAME)";

/// Commands of other programs.
const COMMANDS: &[(&[&str], Word)] = &[
    (&["image", "ls"], Same(&["ls"])),
    (&["image", "list"], Same(&["ls"])),
    (&["images", "ls"], Same(&["ls"])),
    (&["images", "list"], Same(&["ls"])),
    (&["image", "rm"], Same(&["rm"])),
    (&["images", "rm"], Same(&["rm"])),
    (&["image", "pull"], Differently(FETCH)),
    (&["images", "pull"], Differently(FETCH)),
    (&["image", "save"], Differently(ARCHIVE_OUT)),
    (&["image", "load"], Differently(ARCHIVE_IN)),
    (&["image", "import"], Differently(ARCHIVE_IN)),
    (&["images", "import"], Differently(ARCHIVE_IN)),
    (&["images", "export"], Differently(ARCHIVE_OUT)),
    (
        &["image", "prune"],
        Differently(
            "prepull gc --root DIR removes from a store what nothing refers to, prepull cache prune bounds the cache",
        ),
    ),
    (
        &["image", "inspect"],
        Differently("prepull why TAR|DIR NAME explains an image of a store, prepull ls --json TAR|DIR lists all"),
    ),
    (
        &["image"],
        Differently(
            "prepull ls TAR|DIR lists images, prepull rm --root DIR NAME removes them, prepull why TAR|DIR NAME explains one",
        ),
    ),
    (&["images"], Same(&["ls"])),
    (&["list"], Same(&["ls"])),
    (&["rmi"], Same(&["rm"])),
    (&["remove"], Same(&["rm"])),
    (
        &["delete"],
        Differently(
            "prepull deletes nothing in a registry (skopeo delete); prepull rm --root DIR NAME removes an image from a store",
        ),
    ),
    (&["unmount"], Same(&["umount"])),
    (&["version"], Same(&["--version"])),
    (&["completion"], Same(&["completions"])),
    (&["pull"], Differently(FETCH)),
    (&["fetch"], Differently(FETCH)),
    (&["download"], Differently(FETCH)),
    (&["copy"], Differently(FETCH)),
    (&["cp"], Differently(FETCH)),
    (&["sync"], Differently(FETCH)),
    (&["add"], Differently(FETCH)),
    (&["save"], Differently(ARCHIVE_OUT)),
    (&["load"], Differently(ARCHIVE_IN)),
    (&["import"], Differently(ARCHIVE_IN)),
    (
        &["export"],
        Differently("podman export writes the files of a container; prepull make IMAGE writes a store with the image"),
    ),
    (&["push"], Differently(PUSH)),
    (&["tag"], Differently("the name is given with the item (prepull make ITEM=NAME:TAG)")),
    (&["untag"], Differently("prepull rm --root DIR NAME removes a name, and the image with its last name")),
    (
        &["inspect"],
        Differently(
            "prepull why TAR|DIR NAME explains an image of a store, prepull ls --json TAR|DIR lists all; \
                                skopeo inspect docker://IMAGE looks into a registry",
        ),
    ),
    (
        &["inspecti"],
        Differently("prepull why TAR|DIR NAME explains an image of a store, prepull ls --json TAR|DIR lists all"),
    ),
    (
        &["history"],
        Differently("prepull diff OLD NEW compares stores (skopeo inspect --config docker://IMAGE shows a history)"),
    ),
    (
        &["manifest"],
        Differently("skopeo inspect --raw docker://IMAGE shows a manifest; prepull ls --digests TAR|DIR shows digests"),
    ),
    (
        &["config"],
        Differently(
            "skopeo inspect --config docker://IMAGE shows a config; prepull why TAR|DIR NAME explains an image of a store",
        ),
    ),
    (
        &["digest"],
        Differently("prepull ls --digests TAR|DIR shows digests (skopeo inspect docker://IMAGE shows a registry's)"),
    ),
    (&["catalog"], Differently(REGISTRY)),
    (&["list-tags"], Differently(REGISTRY)),
    (&["search"], Differently(REGISTRY)),
    (&["login"], Differently(LOGIN)),
    (&["logout"], Differently(LOGIN)),
    (&["auth"], Differently(LOGIN)),
    (&["run"], Differently(CONTAINERS)),
    (&["runp"], Differently(CONTAINERS)),
    (&["create"], Differently(CONTAINERS)),
    (&["start"], Differently(CONTAINERS)),
    (&["exec"], Differently(CONTAINERS)),
    (&["ps"], Differently(CONTAINERS)),
    (&["pods"], Differently(CONTAINERS)),
    (&["build"], Differently(BUILD)),
    (&["commit"], Differently(BUILD)),
    (&["append"], Differently(BUILD)),
    (&["mutate"], Differently(BUILD)),
    (&["info"], Differently("prepull doctor shows the set-up of this user, prepull --version the version")),
    (&["imagefsinfo"], Differently("prepull ls TAR|DIR shows the sizes of images")),
    (&["system", "df"], Same(&["cache"])),
    (
        &["system"],
        Differently(
            "prepull cache shows the cache, prepull cache prune bounds it, prepull verify TAR|DIR checks a store",
        ),
    ),
    (&["df"], Differently("prepull cache shows the size of the cache")),
    (
        &["prune"],
        Differently(
            "prepull cache prune bounds the cache, prepull gc --root DIR removes from a store what nothing refers to",
        ),
    ),
    (&["check"], Differently("prepull verify TAR|DIR checks a store")),
    (&["fsck"], Differently("prepull verify TAR|DIR checks a store")),
    (&["validate"], Differently("prepull verify TAR|DIR checks a store")),
    (
        &["unpack"],
        Differently(
            "tar -C / -x -f images.tar unpacks what prepull make has written; prepull install --root DIR IMAGE writes into a store that has images",
        ),
    ),
    (
        &["extract"],
        Differently(
            "tar -C / -x -f images.tar unpacks what prepull make has written; prepull install --root DIR IMAGE writes into a store that has images",
        ),
    ),
];

/// Options of other programs: the commands that this holds for (all if there are none), and what to do instead.
const OPTIONS: &[(&[&str], &[&str], &str)] = &[
    (
        &["--insecure", "--insecure-registry", "--plain-http", "-k", "--skip-verify"],
        &[],
        "--tls-verify=false takes any certificate, and plain HTTP",
    ),
    (
        &["--dest-tls-verify", "--dest-creds", "--dest-cert-dir", "--dest-authfile", "--dest-no-creds"],
        &[],
        "prepull writes to no registry; without --dest- the option is for the source",
    ),
    (
        &["--insecure-policy", "--policy", "--signature-policy", "--registries-conf", "--registries.d"],
        &[],
        "prepull checks no signatures and reads no policy.json; leave it out",
    ),
    (
        &["--username", "--password", "--user", "-u", "-p", "--password-stdin"],
        &[],
        "--creds USER:PASSWORD, or better podman login or --authfile FILE",
    ),
    (&["-o"], &["ls", "why", "verify", "diff", "cache", "doctor", "mount status"], "--json prints all fields"),
    (&["--format"], &[], "--json prints all fields, for programs and jq"),
    (&["--no-trunc"], &[], "--json prints whole ids, and prepull ls -q nothing else"),
    (&["--filter"], &[], "prepull ls --names and --json are for grep and jq"),
    (&["-f"], &["rm"], "--force also removes images whose layers the machine's own store needs"),
    (&["-a", "--all"], &["ls"], "all images are listed anyway"),
    (&["-a", "--all"], &["rm"], "images are named one by one (prepull ls --names DIR | xargs prepull rm --root DIR)"),
    (
        &["--all", "-a", "--all-tags", "--multi-arch", "--all-platforms"],
        &[],
        "images are named one by one, each for one platform (--platform OS/ARCH)",
    ),
    (&["--tag", "-t", "--additional-tag", "--name"], &[], "the name is given with the item (ITEM=NAME:TAG)"),
    (
        &["--file", "--input", "-i", "-f"],
        &[],
        "a list of images is --images FILE, an archive is an item (docker-archive:FILE, oci-archive:FILE)",
    ),
    (
        &["--output", "-o", "--dest", "--dir", "-d"],
        &[],
        "prepull make -o FILE writes a tar, prepull install --root DIR into the store of a directory",
    ),
    (
        &["--compress", "--gzip", "-z", "--compression-format"],
        &[],
        "the tar is compressed by another program (prepull make -o - ITEM | gzip -n > FILE)",
    ),
    (&["--debug", "--log-level", "-D"], &[], "-v prints more, -vv still more"),
    (
        &["--runroot", "--storage-driver", "--storage-opt"],
        &[],
        "prepull needs no such setting; the store is at --graphroot below --root",
    ),
    (&["--host", "-H"], &[], "DOCKER_HOST names the Docker daemon"),
    (
        &["--runtime-endpoint", "--image-endpoint", "-r", "--namespace", "-n"],
        &[],
        "prepull works on files and asks no daemon; leave it out",
    ),
    (
        &["--root"],
        &[],
        "install, rm, gc and doctor have it, for the root directory of a machine; other commands have the store as an argument \
         (prepull ls DIR)",
    ),
    (&["--pull", "--policy"], &[], "the registry is asked each time, and layers come from the cache (--no-cache)"),
    (&["--progress", "--no-progress"], &[], "-q hides the progress"),
    (
        &["--preserve-digests", "--sign-by", "--encryption-key", "--decryption-key"],
        &[],
        "images are verified and written as they are; leave it out",
    ),
];

/// Returns the command line with the words of other programs replaced by prepull's.
///
/// # Errors
/// The message, if the command is one of another program that has no counterpart.
pub fn translate(mut typed: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let is_word = |typed: &OsString| !typed.as_encoded_bytes().starts_with(b"-");
    let Some(at) = typed.iter().skip(1).position(is_word).map(|at| at + 1) else { return Ok(typed) };
    let starts =
        |words: &[&str]| typed[at..].iter().map(OsString::as_os_str).take(words.len()).eq(words.iter().map(OsStr::new));
    match COMMANDS.iter().find(|(words, _)| starts(words)) {
        None => Ok(typed),
        Some((words, Same(replaced))) => {
            typed.splice(at..at + words.len(), replaced.iter().map(OsString::from));
            Ok(typed)
        }
        Some((words, Differently(how))) => Err(format!("{}: {how}", words.join(" "))),
    }
}

/// Returns what to do instead of an option of another program.
fn option(command: &str, typed: &str) -> Option<&'static str> {
    let name = typed.split('=').next().unwrap_or(typed);
    let fits = |commands: &[&str]| commands.is_empty() || commands.contains(&command);
    OPTIONS.iter().find(|(names, commands, _)| names.contains(&name) && fits(commands)).map(|(_, _, how)| *how)
}

/// Returns the message for a command line that cannot be understood: one line.
pub fn usage_error(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let get = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) if !texts.is_empty() => Some(texts.join(", ")),
        _ => None,
    };
    let usage = error.get(ContextKind::Usage).map(ToString::to_string).unwrap_or_default();
    let usage: Vec<&str> = usage.split_whitespace().skip_while(|word| *word == "Usage:").collect();
    let program: Vec<&str> =
        usage.iter().copied().take_while(|word| word.starts_with(|char: char| char.is_ascii_lowercase())).collect();
    let (program, usage) = (program.join(" "), usage.join(" "));
    let command = program.strip_prefix("prepull").unwrap_or_default().trim_start();
    let place = if command.is_empty() { String::new() } else { format!("{command}: ") };
    let program = if program.is_empty() { "prepull" } else { &program };
    let argument = get(ContextKind::InvalidArg).unwrap_or_default();
    let value = get(ContextKind::InvalidValue).unwrap_or_default();
    let near = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue]
        .into_iter()
        .find_map(get)
        .map(|near| format!("did you mean {near}? "))
        .unwrap_or_default();
    let text = match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with('-') => match option(command, &argument) {
            Some(how) => format!("no option {argument}: {how}"),
            None => format!("no option {argument} ({near}{program} --help lists them)"),
        },
        ErrorKind::UnknownArgument => format!("{argument}: one argument too many (usage: {usage})"),
        ErrorKind::InvalidSubcommand => {
            let word = get(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("no command {word} ({near}{program} --help lists them)")
        }
        ErrorKind::MissingRequiredArgument => {
            let here = if command == "ls" { "; prepull ls / lists this machine's images" } else { "" };
            format!("{argument} is missing (usage: {usage}; {program} --help explains it{here})")
        }
        ErrorKind::MissingSubcommand => format!("a command is missing (usage: {usage})"),
        ErrorKind::ArgumentConflict => match get(ContextKind::PriorArg) {
            Some(prior) if prior == argument => format!("{argument} is given twice"),
            Some(prior) => format!("{argument} cannot be used with {prior}"),
            None => format!("{argument} cannot be used with what comes before it (usage: {usage})"),
        },
        ErrorKind::InvalidValue if value.is_empty() => format!("{argument}: the value is missing"),
        ErrorKind::InvalidValue => {
            let valid = get(ContextKind::ValidValue).unwrap_or_default();
            format!("{argument}: {value:?} is none of {valid}")
        }
        ErrorKind::ValueValidation => {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            // The standard library's words for what is not a number.
            let cause = match &cause[..] {
                "invalid digit found in string" | "cannot parse integer from empty string" => "not a whole number",
                cause => cause,
            };
            match cause.strip_prefix(&format!("{value:?} ")) {
                Some(rest) => format!("{argument}: {value:?} {rest}"),
                None => format!("{argument}: {value:?}: {cause}"),
            }
        }
        _ => {
            let text = error.render().to_string();
            let first = text.split("\n\n").next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            format!("{} (usage: {usage})", first.split_whitespace().collect::<Vec<_>>().join(" "))
        }
    };
    format!("{place}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn words_of_other_programs_are_none_of_ours() {
        let own = crate::cli::Args::command();
        for (words, word) in COMMANDS {
            assert!(own.find_subcommand(words[0]).is_none(), "{words:?}");
            if let Same(replaced) = word {
                assert!(replaced[0].starts_with('-') || own.find_subcommand(replaced[0]).is_some(), "{words:?}");
            }
        }
        // A longer phrase comes before its beginning.
        for (at, (words, _)) in COMMANDS.iter().enumerate() {
            assert!(!COMMANDS[..at].iter().any(|(earlier, _)| words.starts_with(earlier)), "{words:?}");
        }
    }
}
