//! Names of tree nodes: restic writes them with Go's `strconv.Quote`, less the outer quotes.

/// Quotes a name. Printable text stays as it is.
pub(crate) fn quote(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() && (c as u32) < 0x80 => {
                quoted.push_str(&format!("\\x{:02x}", c as u32));
            }
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted
}

/// Undoes [`quote`] and all of Go's escapes. `None` for what Go would refuse. Bytes that are not
/// UTF-8 become the replacement character: such names are only ever shown.
pub(crate) fn unquote(quoted: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c == '\\' {
            rest = escape(rest, &mut bytes)?;
        } else {
            bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Some(match String::from_utf8(bytes) {
        Ok(name) => name,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// Reads one escape after its backslash; gives what follows it.
fn escape<'a>(rest: &'a str, bytes: &mut Vec<u8>) -> Option<&'a str> {
    let first = *rest.as_bytes().first()?;
    let simple = match first {
        b'a' => 7,
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 11,
        b'\\' | b'\'' | b'"' => first,
        b'x' | b'u' | b'U' => return escape_hex(rest, first, bytes),
        b'0'..=b'7' => {
            let digits = rest.get(..3)?;
            bytes.push(u8::from_str_radix(digits, 8).ok()?);
            return rest.get(3..);
        }
        _ => return None,
    };
    bytes.push(simple);
    rest.get(1..)
}

fn escape_hex<'a>(rest: &'a str, form: u8, bytes: &mut Vec<u8>) -> Option<&'a str> {
    let digits = match form {
        b'x' => 2,
        b'u' => 4,
        _ => 8,
    };
    let text = rest.get(1..=digits)?;
    if !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let value = u32::from_str_radix(text, 16).ok()?;
    if form == b'x' {
        bytes.push(u8::try_from(value).ok()?);
    } else {
        bytes.extend(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
    }
    rest.get(digits + 1..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(name in any::<String>()) {
            prop_assert_eq!(unquote(&quote(&name)), Some(name));
        }

        #[test]
        fn hostile_text_never_panics(text in "[\\\\a-z0-9xuUé\"]{0,20}") {
            let _ = unquote(&text);
        }
    }

    #[test]
    fn go_escapes() {
        assert_eq!(
            unquote(r#"a\"b\\c\x41\u00e4\101"#).as_deref(),
            Some("a\"b\\cAäA")
        );
        for bad in ["\\", "\\q", "\\x4", "\\ud800", "\\8", "\\x+1"] {
            assert_eq!(unquote(bad), None, "{bad}");
        }
    }
}
