//! Completion of image names: what `clap_complete` writes completes words that are known beforehand, and names are in the store that
//! the command line names.
//!
//! All shells do the same: the last word before the cursor that is a path is the store, and `prepull ls --names` lists its names.

use clap_complete::Shell;

const BASH: &str = r#"
# Names of images, of the store that the command line names.
_prepull_names() {
    local word command='' from='' typed names
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$command$word" in
            mount | mount\ rm | why | rm) command="$command$word"; test "$word" = mount && command='mount ' ;;
            *) test -e "$word" && from=$word ;;
        esac
    done
    case "$command" in why | rm | 'mount rm') ;; *) return 1 ;; esac
    # Bash cuts a word at each colon.
    typed=${COMP_LINE:0:COMP_POINT}
    typed=${typed##*[[:space:]]}
    if [[ -z $from || $typed == -* || -e $typed && $command != 'mount rm' ]]; then
        return 1
    fi
    names=$("${COMP_WORDS[0]}" ls --names "$from" 2>/dev/null) || return 1
    COMPREPLY=()
    while read -r word; do
        if [[ $word == "$typed"* ]]; then
            [[ $COMP_WORDBREAKS != *:* || $typed != *:* ]] || word=${word#"${typed%:*}:"}
            COMPREPLY+=("$word")
        fi
    done <<<"$names"
}

_prepull_complete() {
    _prepull_names || _prepull "$@"
}
"#;

const ZSH: &str = r#"
# Names of images, of the store that the command line names.
(( $+functions[_prepull_names] )) ||
_prepull_names() {
    # Of several arguments, `words` has only those.
    local word from=${(Q)opt_args[--root]}
    local -a names
    for word in "${(@)words[1,CURRENT-1]}"; do
        word=${~word#--root=}
        [[ -e $word ]] && from=$word
    done
    [[ -n $from ]] || return 1
    names=(${(f)"$(_call_program names prepull ls --names ${(q)from} 2>/dev/null)"})
    compadd -a names
}

# The first argument of `mount`: a command, or where to mount.
(( $+functions[_prepull_mount_first] )) ||
_prepull_mount_first() {
    _alternative 'commands:mount command:_prepull__subcmd__mount_commands' 'directories:mount point:_files -/'
}
"#;

const FISH: &str = r#"
# Names of images, of the store that the command line names.
function __fish_prepull_names
    set -l from
    for word in (commandline -opc)[2..]
        set word (string replace -r -- '^--root=' '' $word)
        test -e "$word"; and set from $word
    end
    test -n "$from"; and prepull ls --names "$from" 2>/dev/null
end
complete -c prepull -n "__fish_prepull_using_subcommand why rm" -a "(__fish_prepull_names)"
complete -c prepull -n "__fish_prepull_using_subcommand mount; and __fish_seen_subcommand_from rm" -a "(__fish_prepull_names)"
"#;

/// Returns the completions `generated` by clap, which complete names of images as well.
pub fn with_names(shell: Shell, generated: &str) -> String {
    match shell {
        Shell::Bash => {
            // The last lines say which function completes.
            let end = generated.rfind("\nif [[ \"${BASH_VERSINFO[0]}\"").unwrap_or(generated.len());
            let (functions, registration) = generated.split_at(end);
            format!("{functions}{BASH}{}", registration.replace("-F _prepull ", "-F _prepull_complete "))
        }
        Shell::Zsh => zsh(generated),
        Shell::Fish => format!("{generated}{FISH}"),
        _ => generated.to_owned(),
    }
}

/// clap does not know that the first argument of `mount` is a command or a directory: it has the command after all items.
fn zsh(generated: &str) -> String {
    let mut text = String::with_capacity(generated.len() + ZSH.len());
    let mut in_mount = false;
    for line in generated.lines() {
        match line {
            "(mount)" => in_mount = true,
            "(umount)" => in_mount = false,
            _ => {}
        }
        let is_first = line.starts_with("':mountpoint --") || line.starts_with("'::items --");
        if line.starts_with("\":: :_prepull__subcmd__mount_commands\"") {
            text += "'1: :_prepull_mount_first' \\\n";
            // Only once: the commands of `mount` have a mount point of their own.
            in_mount = false;
        } else if in_mount && is_first {
        } else if line.starts_with("':name --") || line.starts_with("'*::names --") {
            let head = line.rsplit_once(':').map_or(line, |(head, _)| head);
            text += &format!("{head}:_prepull_names' \\\n");
        } else if line.starts_with("#compdef") {
            text += &format!("{line}\n{ZSH}");
        } else {
            text += &format!("{line}\n");
        }
    }
    // The arguments after it: those of a command, or items.
    let Some(at) = text.find("curcontext=\"${curcontext%:*:*}:prepull-mount-command-") else { return text };
    let begin = text[..at].rfind("(mount)").unwrap_or(at);
    let end = text[at..].find("esac").map_or(at, |end| at + end);
    let state = text[begin..end].replace("$line[3]", "$line[1]");
    format!("{}{state}(*)\n_files\n;;\n{}", &text[..begin], &text[end..])
}
