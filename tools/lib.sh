# What the tools share: messages, and a look into apt's sources.
# shellcheck shell=bash

say() { echo "${0##*/}: $*" >&2; }
die() { say "error: $*"; exit 1; }

# Prints "URI<tab>Signed-By" of the entry that serves the named suite, from
# files in the deb822 form and in the one-line form.
find_source() {
    local files=(/etc/apt/sources.list.d/*.sources) file
    for file in "${files[@]}"; do
        [ -f "$file" ] || continue
        awk -v suite="$1" '
            function flush() {
                if (!off && (" " suites " ") ~ (" " suite " ") && uri != "") { print uri "\t" key; found = 1; exit }
                suites = uri = key = ""; off = 0
            }
            /^#/ { next }
            /^[ \t]*$/ { flush(); next }
            { field = tolower($1); rest = $0; sub(/^[^:]*:[ \t]*/, "", rest) }
            field == "suites:" { suites = rest }
            field == "uris:" { uri = rest; sub(/ .*/, "", uri) }
            field == "signed-by:" { key = rest }
            field == "enabled:" && tolower(rest) == "no" { off = 1 }
            END { if (!found) flush() }' "$file"
    done
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
        awk -v suite="$1" '$1 == "deb" {
            line = $0; key = ""
            if (match(line, /\[[^]]*\]/)) {
                n = split(substr(line, RSTART + 1, RLENGTH - 2), option, " ")
                for (i = 1; i <= n; i++) if (sub(/^signed-by=/, "", option[i])) key = option[i]
                sub(/\[[^]]*\]/, "", line)
            }
            split(line, word, " ")
            if (word[3] == suite) print word[2] "\t" key
        }'
}
