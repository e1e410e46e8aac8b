"""Read the simple values of an XMP packet, the XML in which cameras store what EXIF has no tags for."""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

MAX_XMP = 1 << 20  # bytes; a JPEG segment holds 64 KiB
MAX_FIELDS, MAX_DEPTH = 10_000, 32  # of an XMP packet
PREFIXES = {  # of XMP namespaces, whatever prefix a file uses
    "http://www.dji.com/drone-dji/1.0/": "drone-dji",
    "http://pix4d.com/camera/1.0": "Camera",
    "http://pix4d.com/camera/1.0/": "Camera",
    "http://ns.sensefly.com/Camera/1.0/": "Camera",
    "http://www.parrot.com/drone-parrot/1.0/": "drone-parrot",
}


def parse_xmp(packet: Any) -> dict[str, str]:
    """Return the simple values of an XMP packet by name, such as `drone-dji:GimbalPitchDegree`.

    Properties may be attributes or elements. A field of a structure is named `drone-x:Structure/drone-x:Field`. Nothing
    is expanded or fetched: a packet with a document type is refused, which is the only way to define entities.

    Args:
        packet: bytes or text; a TIFF may also hold a tuple of byte values.

    Raises:
        ValueError: the packet is larger than MAX_XMP, has a document type, or too many fields.
        ExpatError: it is not well-formed XML.
        LookupError: its encoding is unknown.
    """
    if not isinstance(packet, bytes | str | tuple):
        raise ValueError("not a packet")
    data = packet.encode() if isinstance(packet, str) else bytes(packet)
    data = data.strip(b"\0 \r\n\t")
    if not data:
        return {}
    if len(data) > MAX_XMP:
        raise ValueError(f"a packet of {len(data)} bytes is larger than {MAX_XMP}")
    parser = expat.ParserCreate()
    found: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    names: list[str] = []
    text: list[str] = []

    def refuse(*_: object) -> None:
        raise ValueError("a document type is not allowed")

    def canonical(name: str) -> str:
        prefix, colon, local = name.rpartition(":")
        return f"{prefixes.get(prefix, prefix)}{colon}{local}"

    def keep(name: str, value: str) -> None:
        if len(found) >= MAX_FIELDS:
            raise ValueError(f"more than {MAX_FIELDS} fields")
        path = [each for each in names if not each.startswith(("rdf:", "x:"))]
        found.setdefault("/".join([*path, name] if name else path), value.strip())

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(names) >= MAX_DEPTH:
            raise ValueError(f"elements nested deeper than {MAX_DEPTH}")
        for key, uri in attributes.items():
            if key.startswith("xmlns:") and uri in PREFIXES:
                prefixes[key[len("xmlns:") :]] = PREFIXES[uri]
        names.append(canonical(name))
        text.clear()
        for key, value in attributes.items():
            if not key.startswith(("xmlns", "rdf:", "xml:", "x:")):
                keep(canonical(key), value)

    def end(_: str) -> None:
        if value := "".join(text).strip():
            keep("", value)
        text.clear()
        names.pop()

    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.Parse(data, True)
    return found
