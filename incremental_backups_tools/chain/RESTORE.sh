#!/bin/sh
# RESTORE.sh - restore a backup of this repository with standard tools alone.
#
#     sh RESTORE.sh [-r REPOSITORY] [-i IDENTITY] KEY[@ID] DEST
#
# KEY is the name of a backed-up tree: a directory beside this script. ID is a point in time, or the start of
# one: the names KEY/<ID>.state.jsonl.zst say which there are. Without it, the newest is restored. DEST must
# not exist, or be an empty directory. REPOSITORY is where this script lies unless -r names another directory.
# IDENTITY is the file with the age key, for a repository whose files end in .age.
#
# It needs a POSIX shell and its utilities, tar, zstd, rdiff (the command of librsync), and age where the
# repository is encrypted. Beside DEST it makes DEST.ibt-restore, and removes it at the end: leave as much
# room there as the changed files of one backup take. Run it as root to bring back owners (by their numbers),
# set-user-ID and set-group-ID, and device nodes, which only root can make; else everything belongs to you.
#
# What it cannot bring back: fractions of a second in the times of files, directories and links that come
# straight out of an archive; the times of symbolic links, where only they changed; extended attributes and
# ACLs, except as root with a tar that knows them, and then as of the last time a file was stored whole; file
# flags; holes in files that were changed since they were stored whole; files whose whole path is longer than
# the system takes.
#
# What it checks: that each archive has the size that its state promises, and its digest where b3sum is
# installed; the checksums within zstd's files. Not checked, as there is no common tool for it, are the
# digests of single files and signatures. It trusts whoever wrote the repository.
#
# Exit status: 0 when all is restored; 2 for wrong usage; else 1, a line on standard error says why, and what
# is in DEST is not to be relied on. DEST.ibt-incomplete stands beside DEST until all is restored.

set -euf
umask 077
LC_ALL=C
export LC_ALL
unset CDPATH TAR_OPTIONS
tab=$(printf '\t')
work='' marker='' identity='' failed=''

# --- Saying what went wrong ------------------------------------------------------------------------------

fail() { # MESSAGE
    failed=yes
    printf 'RESTORE.sh: %s%s\n' "$1" "${marker:+; $dest is incomplete}" >&2
    exit 1
}

usage() {
    printf 'usage: sh RESTORE.sh [-r REPOSITORY] [-i IDENTITY] KEY[@ID] DEST\n' >&2
    exit 2
}

finish() { # whatever the reason for ending is
    status=$?
    trap - EXIT
    if [ "$status" -ne 0 ] && [ "$marker" ] && [ ! "$failed" ]; then
        printf 'RESTORE.sh: stopped; %s is incomplete\n' "$dest" >&2
    fi
    if [ "$work" ]; then rm -rf "$work"; fi
    exit "$status"
}

# --- Reading the repository ------------------------------------------------------------------------------

plain() { # FILE: its content, decrypted and decompressed. A pipe hides all failures but its last: "broken" tells
    case $1 in
        *.age) { age -d -i "$identity" <"$1" || broken; } | { zstd -dcq || broken; } ;;
        *) zstd -dcq <"$1" || broken ;;
    esac
}

broken() {
    : >"$work/broken"
}

require_whole() { # FILE, just read by "plain"
    [ ! -e "$work/broken" ] || fail "$1: damaged or not readable${identity:+, or not encrypted to this key}"
}

extract() { # FILE DIRECTORY [OPTION...]
    file=$1 directory=$2
    shift 2
    # What tar leaves unread is read: a pipe that closes early would look like a failure.
    plain "$file" | { tar -xf - -C "$directory" "$@" && cat >/dev/null; } ||
        fail "$file: tar could not extract all of it"
    require_whole "$file"
}

set_tree_options() { # how DEST is extracted: with all metadata that this tar can apply; the words have no spaces
    tree_options=-p
    case $(tar --version 2>&1 || :) in
        # Its manual: without -U it writes into a file that is there, and so into its hard links. Others replace it.
        *bsdtar*) tree_options='-p -U' ;;
    esac
    if [ "$user" -ne 0 ]; then return; fi
    tree_options="$tree_options --numeric-owner"
    case $(tar --help 2>&1 || :) in
        *--acls*--xattrs-include*) tree_options="$tree_options --acls --xattrs --xattrs-include=*" ;;
    esac
}

list_points() { # "id generation file" of each state of the key, sorted
    id='\([0-9]\{8\}T[0-9]\{6\}\.[0-9]\{6\}Z\)' suffix='\.state\.jsonl\.zst\(\.age\)\{0,1\}'
    (set +f && cd "$repository/$key" && printf '%s\n' *) |
        sed -n -e "s/^$id$suffix\$/\\1 0 &/p" -e "s/^$id\\.g\\([1-9][0-9]*\\)$suffix\$/\\1 \\2 &/p" |
        sort -k 1,1 -k 2,2n >"$work/points"
}

select_point() { # START: sets point, the newest id, or the only one that begins with START
    point=
    while read -r id _; do
        case $id in "$1"*) ;; *) continue ;; esac
        # One that was forgotten only stays for others to stand on.
        if [ -e "$repository/$key/$id.forgotten" ] || [ "$id" = "$point" ]; then continue; fi
        if [ "$1" ] && [ "$point" ]; then fail "$key: several backups begin with $1: $point, $id"; fi
        point=$id
    done <"$work/points"
    [ "$point" ] || fail "$key: there is no backup${1:+ that begins with $1}"
}

text_of() { # FIELD: a text in the header in $work/header, up to its list of files
    sed -n "1s/^[^[]*\"$1\":\"\\([^\"]*\\)\".*/\\1/p" "$work/header"
}

read_state() { # ID: checks its state, leaves the header in $work/header and the files in $work/ID.files
    case $1 in '' | *[!0-9TZ.]*) fail "$state: names an impossible parent" ;; esac
    name=$(sed -n "s/^$1 [0-9]* //p" "$work/points" | sed -n '$p') # the highest generation
    [ "$name" ] || fail "$key: the state of $1 is missing"
    state=$repository/$key/$name
    case $state in
        *.age)
            command -v age >/dev/null || fail "age: not installed"
            [ "$identity" ] || fail "$state is encrypted: name the file with the age key by -i"
            ;;
    esac
    plain "$state" | sed -n -e 1p -e '$p' >"$work/header" # and the trailer, its last line
    require_whole "$state"
    case $(sed -n '1s/"kind".*//p' "$work/header") in
        '{"format":"ibt-state","version":1,') ;;
        *) fail "$state: not a state that this script can read" ;;
    esac
    lines=$(sed -n '1s/^[^[]*"lines":\([0-9]*\).*/\1/p' "$work/header")
    entries=$(sed -n '$s/^{"entries":\([0-9]*\),.*/\1/p' "$work/header")
    if [ "$lines" != "$entries" ] || [ "$(text_of id)" != "$1" ]; then fail "$state: cut or altered"; fi
    sed -n '1s/^[^[]*"files":\[\([^]]*\)\].*/\1/p' "$work/header" | tr '}' '\n' |
        sed -n 's/.*"name":"\([^"]*\)".*"role":"\([^"]*\)".*"size":\([0-9]*\).*"digest":"\([^"]*\)".*/\2 \3 \4 \1/p' \
            >"$work/$1.files"
}

check_files() { # ID: what restoring it reads is there as its state promises; signatures are not read
    while read -r role size digest name; do
        file=$repository/$key/$name
        case $role,$name in
            sigvault,*) continue ;;
            *,*/* | *,.*) fail "$state: names an impossible file" ;;
        esac
        if [ ! -f "$file" ] || [ ! -r "$file" ]; then fail "$file: missing or not readable"; fi
        found=$(wc -c <"$file")
        [ "$((found))" -eq "$size" ] || fail "$file: has $((found)) bytes, not $size: damaged"
        if [ "$b3sum" ]; then
            found=$(b3sum <"$file")
            [ "${found%% *}" = "$digest" ] || fail "$file: has BLAKE3 ${found%% *}, not $digest: damaged"
        fi
    done <"$work/$1.files"
}

plan_chain() { # ID: sets chain, the ids from the full up to it
    chain='' id=$1 expected=''
    while :; do
        [ ! -e "$work/$id.files" ] || fail "$key: $id stands on itself"
        read_state "$id"
        check_files "$id"
        if [ "$expected" ] && [ "$expected" != "$(text_of index_digest)" ]; then
            fail "$key: $id is not the backup that ${chain%% *} was made on"
        fi
        chain="$id $chain"
        case $(text_of kind) in
            full) return ;;
            incremental) ;;
            *) fail "$state: of a kind that this script does not know" ;;
        esac
        expected=$(text_of parent_index_digest)
        id=$(text_of parent)
    done
}

# --- Replaying one backup's list: what tar cannot carry --------------------------------------------------

each() { # VERB FUNCTION: for each record of that verb set path, its first field, and pass on the others
    verb=$1 function=$2
    sed -n "s/^$verb$tab//p" "$work/replay" >"$work/records"
    while IFS=$tab read -r field second third fourth fifth <&3; do
        decode "$field"
        path=$decoded
        "$function" "$second" "$third" "$fourth" "$fifth" || fail "'$verb $field' could not be done"
    done 3<"$work/records"
}

decode() { # FIELD: sets decoded, the path it stands for
    case $1 in
        *\\*) decoded=$(printf '%b.' "$1") && decoded=${decoded%.} ;; # the dot keeps newlines at its end
        *) decoded=$1 ;;
    esac
    case /$decoded/ in // | //?* | */../*) fail "the replay list names an impossible path: $1" ;; esac
}

make_parents() { # FILE: the directories that it lies in
    if [ ! -d "${1%/*}" ]; then mkdir -p "${1%/*}"; fi
}

copy() { # OLD NEW: the content alone. Where OLD is not readable it is made so for a moment
    if [ -r "$1" ]; then
        cp "$1" "$2"
    else
        chmod u+r "$1" && cp "$1" "$2" && chmod u-r "$1"
    fi
}

put_copy() { # OLD: its content becomes DEST/path. Made elsewhere, so that no default ACL of the directory is on it
    make_parents "$work/new/$path"
    copy "$1" "$work/new/$path" && put_new
}

keep() {
    make_parents "$work/keep/$path"
    { [ -r "$dest/$path" ] && ln "$dest/$path" "$work/keep/$path" 2>/dev/null; } ||
        copy "$dest/$path" "$work/keep/$path"
}

patch() { # FROM
    decode "$1"
    make_parents "$work/new/$path"
    if [ ! -r "$work/updated/$path" ]; then chmod u+r "$work/updated/$path"; fi
    rdiff patch "$work/keep/$decoded" "$work/updated/$path" "$work/new/$path" && rm -f "$work/updated/$path"
}

delete() {
    if [ -d "$dest/$path" ] && [ ! -h "$dest/$path" ]; then rmdir "$dest/$path"; else rm -f "$dest/$path"; fi
}

put_new() {
    mv -f "$work/new/$path" "$dest/$path"
}

place() { # FROM
    decode "$1"
    put_copy "$work/keep/$decoded"
}

duplicate() { # FROM
    decode "$1"
    put_copy "$dest/$decoded"
}

link() { # TARGET
    decode "$1"
    # POSIX leaves open what ln does to a symbolic link unless -P says it; some know only the right way.
    rm -f "$dest/$path" &&
        { ln -P "$dest/$decoded" "$dest/$path" 2>/dev/null || ln "$dest/$decoded" "$dest/$path"; }
}

meta() { # MODE UID GID TIME
    if [ "$user" -eq 0 ]; then chown -h "$2:$3" "$dest/$path" || return; fi
    if [ "$1" = - ] || [ -h "$dest/$path" ]; then return; fi
    # Of a directory, numbers alone need not take away set-user-ID and set-group-ID.
    if [ -u "$dest/$path" ] || [ -g "$dest/$path" ]; then chmod ug-s "$dest/$path" || return; fi
    set_time "$4" && chmod "$1" "$dest/$path"
}

set_time() { # YYYY-MM-DDThh:mm:ss.nnnnnnnnnZ: of DEST/path
    if [ "$fine_times" ]; then
        touch -c -d "$1" "$dest/$path"
    else
        minute=${1%:*} second=${1##*:}
        TZ=UTC0 touch -c -t "$(printf %s "$minute" | tr -d 'T:-').${second%%.*}" "$dest/$path"
    fi
}

open_directories() { # those that are written to and do not let their owner do so; "meta" closes them again
    if [ "$user" -eq 0 ]; then return; fi
    sed -n -e "s/^delete$tab//p" -e "s/^meta$tab\\([^$tab]*\\).*/\\1/p" "$work/replay" | sort >"$work/written"
    while read -r field <&3; do
        decode "$field"
        if [ ! -d "$dest/$decoded" ] || [ -h "$dest/$decoded" ]; then continue; fi
        if [ -r "$dest/$decoded" ] && [ -w "$dest/$decoded" ] && [ -x "$dest/$decoded" ]; then continue; fi
        chmod u+rwx "$dest/$decoded" || fail "$field: cannot be made writable"
    done 3<"$work/written"
}

restore_backup() { # ID: turn its parent in DEST into it, or nothing into a full
    mkdir "$work/keep" "$work/updated" "$work/new"
    : >"$work/replay"
    while read -r role size digest name <&4; do
        file=$repository/$key/$name
        case $role in
            updated) extract "$file" "$work/updated" ;;
            replay)
                plain "$file" >"$work/replay"
                require_whole "$file"
                ;;
        esac
    done 4<"$work/$1.files"
    open_directories
    each keep keep
    each patch patch
    each delete delete
    while read -r role size digest name <&4; do
        case $role in
            full | created)
                open_directories
                # shellcheck disable=SC2086 # words
                extract "$repository/$key/$name" "$dest" $tree_options
                ;;
        esac
    done 4<"$work/$1.files"
    open_directories
    each patch put_new
    each place place
    each dup duplicate
    each link link
    each meta meta
    rm -rf "$work/keep" "$work/updated" "$work/new"
}

drop_privileges() { # set-user-ID and set-group-ID were given to other owners than the one who restores
    if [ "$user" -eq 0 ]; then return; fi
    find "$dest" -type d ! -perm -500 -prune -o ! -type l \( -perm -4000 -o -perm -2000 \) -exec chmod ug-s {} + ||
        fail "$dest: set-user-ID could not be taken away"
}

# --- The whole of it -------------------------------------------------------------------------------------

absolute() { # DIRECTORY: sets absolute, its full path
    case $1 in /*) ;; *) set -- "./$1" ;; esac
    absolute=$(cd "$1" && pwd -P && printf .) || fail "$1: cannot be entered"
    absolute=${absolute%??} # a newline and the dot that kept it
}

prepare_destination() { # DEST: sets dest, its full path, and makes the work directory beside it
    dest=$1
    while :; do
        case $dest in ?*/) dest=${dest%/} ;; *) break ;; esac
    done
    case $dest in /*) ;; *) dest=./$dest ;; esac
    if [ -d "$dest" ]; then
        absolute "$dest"
        dest=$absolute
        [ ! "$(ls -Aq "$dest")" ] || fail "$dest: not empty"
    else
        if [ -e "$dest" ] || [ -h "$dest" ]; then fail "$dest: not a directory"; fi
        mkdir -p "${dest%/*}/" || fail "$dest: cannot be made"
        name=${dest##*/}
        absolute "${dest%/*}/"
        dest=$absolute/$name
    fi
    mkdir "$dest.ibt-restore" || fail "$dest.ibt-restore: cannot be made: another restore runs, or was killed"
    work=$dest.ibt-restore
}

main() {
    case $0 in */*) repository=${0%/*}/ ;; *) repository=. ;; esac
    while getopts r:i: option; do
        case $option in
            r) repository=$OPTARG ;;
            i) identity=$OPTARG ;;
            *) usage ;;
        esac
    done
    shift $((OPTIND - 1))
    if [ $# -ne 2 ] || [ ! "$2" ]; then usage; fi
    key=${1%%@*} start=
    case $1 in *@*) start=${1#*@} ;; esac
    case $start in *[!0-9TZ.]*) fail "'$start' is not the start of an id such as 20261120T072531.123456Z" ;; esac
    case $key in '' | . | .. | *[!A-Za-z0-9._-]*) fail "'$key' is not a key" ;; esac
    absolute "$repository"
    repository=$absolute
    [ -d "$repository/$key" ] || fail "$repository: has no backups of $key"

    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    for tool in tar zstd rdiff; do
        command -v "$tool" >/dev/null || fail "$tool: not installed"
    done
    b3sum=$(command -v b3sum || :)
    user=$(id -u)
    set_tree_options
    prepare_destination "$2"
    fine_times=
    if touch -d 2001-02-03T04:05:06.789012345Z "$work/time" 2>/dev/null; then fine_times=yes; fi
    list_points
    select_point "$start"
    plan_chain "$point"

    marker=$dest.ibt-incomplete
    printf 'The restore of %s@%s has not ended.\n' "$key" "$point" >"$marker"
    [ -d "$dest" ] || mkdir "$dest"
    for id in $chain; do
        restore_backup "$id"
    done
    drop_privileges
    if command -v sync >/dev/null; then sync; fi
    rm -f "$marker"
    printf 'restored %s@%s to %s\n' "$key" "$point" "$dest"
}

main "$@"
