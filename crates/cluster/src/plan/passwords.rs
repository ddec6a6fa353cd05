//! Passwords in the definition of a guest: those of its displays, and the cookies that a disk is read
//! with. libvirt shows them to who asks for them; documents have none, and a guest keeps those that it
//! has when its definition is changed.

use crate::xml::{Element, Node};

/// The attributes of a display that libvirt shows to few.
const KEYS: [&str; 2] = ["passwd", "passwdValidTo"];

/// The definition `then` with the passwords that `now` has; `None` where it has none, or what is given
/// is no XML.
#[must_use]
pub fn keep_passwords(then: &str, now: &str) -> Option<String> {
    let now = Element::parse(now).ok()?;
    let mut then = Element::parse(then).ok()?;
    let now = now.child("devices")?;
    let devices = then.children_mut().find(|one| one.name == "devices")?;
    let displays = keep_displays(devices, now);
    let cookies = keep_cookies(devices, now);
    match displays || cookies {
        true => then.to_xml().ok(),
        false => None,
    }
}

fn keep_displays(then: &mut Element, now: &Element) -> bool {
    let mut kept = false;
    let displays = then.children_mut().filter(|one| one.name == "graphics");
    for (display, old) in displays.zip(now.all("graphics")) {
        if old.get("type") != display.get("type") {
            continue;
        }
        for key in KEYS {
            if let Some(value) = old.get(key) {
                display.set(key, value);
                kept = true;
            }
        }
    }
    kept
}

fn keep_cookies(then: &mut Element, now: &Element) -> bool {
    let mut kept = false;
    for disk in then.children_mut().filter(|one| one.name == "disk") {
        let mut all = now.all("disk");
        let Some(old) = all.find(|old| target(old) == target(disk)) else {
            continue;
        };
        let Some(cookies) = old.at(&["source", "cookies"]) else {
            continue;
        };
        if let Some(source) = disk.children_mut().find(|one| one.name == "source") {
            source.remove(&["cookies"]);
            source.nodes.push(Node::Element(cookies.clone()));
            kept = true;
        }
    }
    kept
}

fn target(disk: &Element) -> Option<&str> {
    disk.child("target").and_then(|target| target.get("dev"))
}

/// The passwords of a definition, in an order that two of them can be compared in; nothing where it is
/// no XML.
#[must_use]
pub fn passwords(definition: &str) -> Vec<String> {
    let Ok(domain) = Element::parse(definition) else {
        return Vec::new();
    };
    let Some(devices) = domain.child("devices") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (number, display) in devices.all("graphics").enumerate() {
        for key in KEYS {
            let value = display.get(key);
            found.extend(value.map(|value| format!("graphics {number} {key} {value}")));
        }
    }
    for disk in devices.all("disk") {
        let cookies = disk.at(&["source", "cookies"]);
        let cookies = cookies.and_then(|cookies| cookies.to_xml().ok());
        let target = target(disk).unwrap_or_default();
        found.extend(cookies.map(|cookies| format!("disk {target} {cookies}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_display_keeps_its_own() {
        let xml = |first: &str, second: &str| {
            format!(
                "<domain><devices><graphics type=\"spice\"{first}/>\
                 <graphics type=\"vnc\"{second}/></devices></domain>"
            )
        };
        let secret = " passwd=\"hunter2\"";
        assert_eq!(
            keep_passwords(&xml("", " port=\"1\""), &xml("", secret)),
            Some(xml("", &format!(" port=\"1\"{secret}")))
        );
        assert_eq!(keep_passwords(&xml("", ""), &xml("", "")), None);
        let one = "<domain><devices><graphics type=\"vnc\"/></devices></domain>";
        assert_eq!(keep_passwords(one, &xml(secret, "")), None);
        assert_eq!(
            passwords(&xml("", secret)),
            ["graphics 1 passwd hunter2".to_owned()]
        );
    }

    #[test]
    fn a_disk_keeps_its_cookies() {
        let xml = |cookies: &str| {
            format!(
                "<domain><devices><disk><target dev=\"vda\"/></disk><disk><source protocol=\"https\">\
                 {cookies}</source><target dev=\"vdb\"/></disk></devices></domain>"
            )
        };
        let with = xml("<cookies><cookie name=\"a\">hunter2</cookie></cookies>");
        assert_eq!(keep_passwords(&xml(""), &with), Some(with.clone()));
        assert_eq!(passwords(&with).len(), 1);
        assert_eq!(passwords(&xml("")), Vec::<String>::new());
    }
}
