//! Manual pages, in the order and with the sections of man-pages(7).

use std::fmt::Write as _;
use std::io;

use clap::Command;

use crate::cli::args::command;

/// The date of this version, which is the date of its pages: pages of one version are the same whenever they are written.
const DATE: &str = "2026-12-01";

/// The program that the pages belong to, on the last line of each.
const SOURCE: &str = concat!("prepull ", env!("CARGO_PKG_VERSION"));

const DONE: (&str, &str) = ("0", "All was done.");
const FAILED: (&str, &str) = ("1", "Something failed; standard error names the cause.");
const USAGE: (&str, &str) = ("2", "Wrong usage, or an image, a file or a directory that does not exist.");
const INTERRUPTED: (&str, &str) = ("130", "Interrupted by SIGINT, SIGTERM or SIGHUP.");

/// Returns what the exit codes of a command mean.
fn exit_status(name: &str) -> Vec<(&'static str, &'static str)> {
    let mut codes = match name {
        "prepull-verify" => vec![
            ("0", "The store is good; with --strict, there are no warnings either."),
            ("1", "There are errors; with --strict, or warnings."),
            ("2", "There is no store, or it cannot be read."),
        ],
        "prepull-ls" => vec![DONE, FAILED, ("2", "Wrong usage, no store, or it cannot be read.")],
        "prepull-diff" => {
            vec![("0", "The stores are the same."), ("1", "They differ."), ("2", "They cannot be compared.")]
        }
        "prepull-why" => vec![
            ("0", "A pod needs no pull."),
            ("1", "CRI-O finds the image, but pulls, or the container does not start."),
            ("2", "CRI-O finds no image, or the store cannot be read."),
        ],
        "prepull-doctor" => vec![
            ("0", "For each directory at least one way works."),
            ("1", "For some directory no way works, or there is no directory to try."),
            USAGE,
        ],
        _ => vec![DONE, FAILED, USAGE],
    };
    codes.push(INTERRUPTED);
    codes
}

/// Variables of commands that fetch images.
const FETCHING: [(&str, &str); 8] = [
    ("REGISTRY_AUTH_FILE", "Credentials file, unless --authfile names one."),
    (
        "XDG_RUNTIME_DIR, XDG_CONFIG_HOME, DOCKER_CONFIG",
        "Directories of the credentials that podman, skopeo and docker store.",
    ),
    ("PREPULL_TIMEOUT, PREPULL_MIN_RATE", "Defaults of --timeout and --min-rate."),
    ("DOCKER_HOST", "Address of the Docker daemon, for docker-daemon: items."),
    ("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "Proxies, and hosts that are reached without one; also in lower case."),
    ("SSL_CERT_FILE, SSL_CERT_DIR", "Certificate authorities, in place of the system's."),
    ("TMPDIR", "Directory of large temporary files (default: /var/tmp)."),
    ("SOURCE_DATE_EPOCH", "Time of the store's own files, in seconds since 1970 (default: that of the newest image)."),
];

/// Returns the variables that a command reads.
fn environment(command: &Command) -> Vec<(&'static str, &'static str)> {
    let has = |id: &str| command.get_arguments().any(|argument| argument.get_id() == id);
    let mut all = Vec::new();
    if has("tls_verify") {
        all.extend(FETCHING);
    } else if has("path") || has("old") {
        all.push(("TMPDIR", "Directory of the copy of a compressed tar or of a pipe (default: /var/tmp)."));
    }
    if has("cache_dir") {
        all.push(("XDG_CACHE_HOME, HOME", "Directory of the cache: $XDG_CACHE_HOME/prepull, else ~/.cache/prepull."));
    }
    if ["prepull-make", "prepull-ovl"].contains(&name(command).as_str()) {
        all.push(("XCLUSTER, XCLUSTER_TMP, XCLUSTER_OVLPATH", "Directories of xcluster."));
    }
    all.push(("PREPULL_LOG", "Filter of messages, as of tracing-subscriber: prepull=debug."));
    all
}

/// Returns the files that a command uses.
fn files(command: &Command) -> Vec<(&'static str, &'static str)> {
    let has = |id: &str| command.get_arguments().any(|argument| argument.get_id() == id);
    let mut all = Vec::new();
    if has("cache_dir") {
        all.push(("~/.cache/prepull", "Converted layers."));
    }
    if has("tls_verify") {
        all.push(("/etc/containers/certs.d, /etc/docker/certs.d", "Certificates by registry."));
        all.push((
            "${XDG_RUNTIME_DIR}/containers/auth.json, ~/.config/containers/auth.json, ~/.docker/config.json",
            "Credentials.",
        ));
    }
    if has("helper") {
        all.push(("/etc/prepull/helper.toml", "Policy: which users may write where."));
        all.push((crate::install::way::HELPER, "The helper."));
        all.push((crate::install::way::SOCKET, "The socket of the service."));
    }
    all
}

/// Returns all pages: file name and text.
pub fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    let mut all = Vec::new();
    names(&command, &mut all);
    let mut pages = Vec::new();
    page(&command, &all, &mut pages)?;
    Ok(pages)
}

fn names(command: &Command, all: &mut Vec<String>) {
    all.push(name(command));
    command.get_subcommands().for_each(|command| names(command, all));
}

fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &Command, all: &[String], pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let name = name(command);
    let man = clap_mangen::Man::new(command.clone()).date(DATE).source(SOURCE).manual("prepull manual");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    // clap_mangen breaks lines at paragraphs, which roff does anyway.
    let text = String::from_utf8_lossy(&text).replace(".br\n\n.br\n", ".sp\n");
    let mut text = text.into_bytes();
    let mut more = String::new();
    let help = command.get_after_long_help().or_else(|| command.get_after_help()).map(ToString::to_string);
    let help = help.unwrap_or_default();
    // Items come before, examples after what is of all commands.
    let (items, examples) = help.split_once("Examples:\n").unwrap_or((&help, ""));
    if let Some(items) = items.strip_prefix("Items:\n") {
        verbatim(&mut more, "ITEMS", items);
    }
    list(&mut more, "EXIT STATUS", &exit_status(&name));
    list(&mut more, "ENVIRONMENT", &environment(command));
    list(&mut more, "FILES", &files(command));
    if !examples.is_empty() {
        verbatim(&mut more, "EXAMPLES", examples);
    }
    // The command that this one belongs to, its own, and those beside it.
    let parent = name.rsplit_once('-').map_or("prepull", |(parent, _)| parent);
    let is_near = |other: &&String| {
        **other == parent
            || other.rsplit_once('-').is_some_and(|(of, _)| of == name || (of == parent && parent != "prepull"))
    };
    let mut near: Vec<String> =
        all.iter().filter(is_near).filter(|other| **other != name).map(|name| format!("{name}(1)")).collect();
    near.extend(
        ["podman(1)", "skopeo(1)", "containers-transports(5)", "containers-storage.conf(5)"].map(str::to_owned),
    );
    let near: Vec<_> =
        near.iter().map(|page| format!("\\fB{}", page.replace('-', "\\-").replacen('(', "\\fR(", 1))).collect();
    let _ = write!(more, ".SH SEE ALSO\n{}\n", near.join(",\n"));
    text.extend(more.into_bytes());
    pages.push((man.get_filename(), text));
    command.get_subcommands().try_for_each(|command| page(command, all, pages))
}

/// Appends a section with a list of terms.
fn list(text: &mut String, heading: &str, terms: &[(&str, &str)]) {
    if terms.is_empty() {
        return;
    }
    let _ = writeln!(text, ".SH {heading}");
    for (term, meaning) in terms {
        let _ = write!(text, ".TP\n\\fB{}\\fR\n{}\n", escaped(term), escaped(meaning));
    }
}

/// Appends a section whose lines stay as they are: they are to be copied.
fn verbatim(text: &mut String, heading: &str, lines: &str) {
    let _ = writeln!(text, ".SH {heading}\n.nf");
    for line in lines.trim_end().lines() {
        let _ = writeln!(text, "{}", escaped(line));
    }
    text.push_str(".fi\n");
}

/// Escapes a line for roff: a `-` stays one that can be copied, and no line is taken for a request.
fn escaped(line: &str) -> String {
    let line = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('`', "\\(ga")
        .replace('~', "\\(ti")
        .replace('^', "\\(ha");
    if line.starts_with('.') { format!("\\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_date_is_that_of_the_newest_version() {
        let log = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/CHANGELOG.md"));
        let mut versions = log.lines().filter_map(|line| line.strip_prefix("## [")?.split_once("] - "));
        if let Some((version, date)) = versions.next() {
            assert_eq!(
                (version, date.trim()),
                (env!("CARGO_PKG_VERSION"), super::DATE),
                "set DATE when the version changes"
            );
        }
    }
}
