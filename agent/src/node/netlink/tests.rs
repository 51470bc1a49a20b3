use super::*;

const NLM_F_DUMP_INTR: u16 = libc::NLM_F_DUMP_INTR as u16;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [(value.len() as u16 + 4).to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32 + 16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&77u32.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn link_message(kind: u16, family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    link_message_of(kind, family, (libc::ARPHRD_ETHER, libc::IFF_UP), attributes)
}

fn link_message_of(kind: u16, family: u8, (layer, flags): (u16, i32), attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut header = link_header(5);
    header[0] = family;
    header[2..4].copy_from_slice(&layer.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    message(kind, 0, &[header.to_vec(), attributes.concat()].concat())
}

fn address_message(kind: u16, flags: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    message(kind, 0, &[vec![2, 24, flags, 0, 5, 0, 0, 0], attributes.concat()].concat())
}

fn bodies(datagram: &[u8]) -> Vec<Body> {
    messages(datagram).expect("a legal datagram").into_iter().map(|message| message.body).collect()
}

fn veth() -> Vec<Vec<u8>> {
    vec![
        attribute(IFLA_IFNAME, b"veth0\0"),
        attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 9]),
        attribute(IFLA_MASTER, &3u32.to_ne_bytes()),
        attribute(IFLA_LINK, &2u32.to_ne_bytes()),
        attribute(IFLA_LINK_NETNSID, &0i32.to_ne_bytes()),
        attribute(IFLA_LINKINFO | libc::NLA_F_NESTED as u16, &attribute(IFLA_INFO_KIND, b"veth\0")),
        // Nothing that is known here, nor as long as it should be.
        attribute(4, &[1]),
        attribute(200, &[1, 2, 3, 4, 5]),
    ]
}

fn veth_link() -> Link {
    Link {
        is_up: true,
        is_loopback: false,
        has_link_header: true,
        index: 5,
        name: "veth0".into(),
        kind: LinkKind::Veth,
        mac: Some([2, 0, 0, 0, 0, 9]),
        master: Some(3),
        peer: Some(2),
        netns_id: Some(0),
    }
}

#[test]
fn links() {
    let unspec = libc::AF_UNSPEC as u8;
    assert_eq!(bodies(&link_message(RTM_NEWLINK, unspec, &veth())), [Body::Link(veth_link())]);
    assert_eq!(bodies(&link_message(RTM_DELLINK, unspec, &veth())), [Body::LinkGone(5)]);
    // A port that leaves its bridge is still there.
    assert_eq!(bodies(&link_message(RTM_DELLINK, libc::AF_BRIDGE as u8, &veth())), [Body::Other]);
    assert_eq!(bodies(&link_message(RTM_NEWLINK, libc::AF_BRIDGE as u8, &veth())), [Body::Other]);
    let other = [
        attribute(IFLA_IFNAME, b"eth\xff\0"),
        attribute(IFLA_ADDRESS, &[0; 20]),
        attribute(IFLA_MASTER, &[0; 4]),
        attribute(IFLA_LINK, &[0; 4]),
        attribute(IFLA_LINK_NETNSID, &(-1i32).to_ne_bytes()),
        attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"bond\0")),
    ];
    let none = Link { mac: None, master: None, peer: None, netns_id: None, kind: LinkKind::Other, ..veth_link() };
    assert_eq!(
        bodies(&link_message(RTM_NEWLINK, unspec, &other)),
        [Body::Link(Link { name: "eth\u{fffd}".into(), ..none.clone() })]
    );
    let vxlan = |data: &[Vec<u8>]| {
        let info = [attribute(IFLA_INFO_KIND, b"vxlan\0"), attribute(IFLA_INFO_DATA, &data.concat())].concat();
        let link = [attribute(IFLA_IFNAME, b"flannel.1\0"), attribute(IFLA_LINKINFO, &info)];
        bodies(&link_message(RTM_NEWLINK, unspec, &link))
    };
    let wanted = |vxlan| [Body::Link(Link { name: "flannel.1".into(), kind: LinkKind::Vxlan(vxlan), ..none.clone() })];
    let (vni, port) = (attribute(IFLA_VXLAN_ID, &1_u32.to_ne_bytes()), attribute(IFLA_VXLAN_PORT, &[0x21, 0x18]));
    let local = attribute(IFLA_VXLAN_LOCAL, &[172, 30, 0, 11]);
    let whole = Vxlan { local: Some([172, 30, 0, 11].into()), vni: 1, port: 8472 };
    assert_eq!(vxlan(&[vni, local, port]), wanted(whole));
    // An odd attribute loses nothing but itself.
    let odd = [attribute(IFLA_VXLAN_ID, &[1]), attribute(IFLA_VXLAN_PORT, &[1, 2, 3])];
    assert_eq!(vxlan(&odd), wanted(Vxlan { local: None, vni: 0, port: 0 }));
}

#[test]
fn what_a_links_header_says() {
    for (layer, flags, [is_up, is_loopback, has_link_header]) in [
        (libc::ARPHRD_ETHER, 0, [false, false, true]),
        (libc::ARPHRD_ETHER, libc::IFF_UP | libc::IFF_RUNNING, [true, false, true]),
        (libc::ARPHRD_LOOPBACK, libc::IFF_UP | libc::IFF_LOOPBACK, [true, true, false]),
        (libc::ARPHRD_NONE, libc::IFF_UP, [true, false, false]),
        (libc::ARPHRD_TUNNEL, libc::IFF_RUNNING, [false, false, false]),
    ] {
        let link = Link { is_up, is_loopback, has_link_header, ..veth_link() };
        let message = link_message_of(RTM_NEWLINK, libc::AF_UNSPEC as u8, (layer, flags), &veth());
        assert_eq!(bodies(&message), [Body::Link(link)], "{layer} {flags:#x}");
    }
}

#[test]
fn addresses() {
    let body = |flags, attributes: &[Vec<u8>]| bodies(&address_message(RTM_NEWADDR, flags, attributes));
    let (a, b) = (attribute(IFA_ADDRESS, &[10, 0, 0, 1]), attribute(IFA_LOCAL, &[10, 0, 0, 2]));
    let found = |text: &str| [Body::Address { index: 5, address: Some((text.parse().expect("an address"), 24)) }];
    assert_eq!(body(0, std::slice::from_ref(&a)), found("10.0.0.1"));
    assert_eq!(body(0, &[a.clone(), b.clone()]), found("10.0.0.2"));
    assert_eq!(body(0, &[b, a.clone()]), found("10.0.0.2"));
    assert_eq!(body(0, &[attribute(IFA_ADDRESS, &[0xfd; 16])]), found("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd"));
    assert_eq!(body(IFA_F_DADFAILED, &[a]), [Body::Address { index: 5, address: None }]);
    assert_eq!(body(0, &[attribute(IFA_ADDRESS, &[1, 2])]), [Body::Address { index: 5, address: None }]);
    assert_eq!(bodies(&address_message(RTM_DELADDR, 0, &[])), [Body::AddressGone { index: 5 }]);
}

#[test]
fn datagrams() {
    let done = message(netlink_packet_core::NLMSG_DONE, NLM_F_DUMP_INTR, &0i32.to_ne_bytes());
    let refused = message(netlink_packet_core::NLMSG_ERROR, 0, &[(-1i32).to_ne_bytes().to_vec(), vec![0; 16]].concat());
    let overrun = message(netlink_packet_core::NLMSG_OVERRUN, 0, &[]);
    let many =
        [link_message(RTM_NEWLINK, 0, &veth()), message(99, 0, &[0; 3]), vec![0], refused, overrun, done].concat();
    let expected = [Body::Link(veth_link()), Body::Other, Body::End(-1), Body::Overrun, Body::End(0)];
    assert_eq!(bodies(&many), expected);
    let last = messages(&many).expect("a legal datagram").pop().expect("five messages");
    assert!(last.interrupted && last.sequence == 77);
    // Neither a cut datagram nor one with any byte changed brings the reader down or keeps it forever.
    for end in 0..many.len() {
        drop(messages(&many[..end]));
    }
    for at in 0..many.len() {
        for value in [0, 1, 3, 0x7f, 0xff] {
            let mut other = many.clone();
            other[at] = value;
            drop(messages(&other));
        }
    }
    assert!(messages(&many[..20]).is_err());
}

#[test]
fn requests() {
    let bytes = addresses_request(AddressFamily::V6, 2, 7).numbered(9);
    let header = [32u32.to_ne_bytes().to_vec(), vec![22, 0, 1, 3], 9u32.to_ne_bytes().to_vec(), vec![0; 4]].concat();
    assert_eq!(bytes, [header, vec![10, 0, 0, 0, 2, 0, 0, 0], attribute(IFA_TARGET_NETNSID, &[7, 0, 0, 0])].concat());
    let with = link_request(2, Some(7)).numbered(1);
    assert_eq!(with.len(), 16 + 16 + 8 + 8);
    assert_eq!(with[..4], 48u32.to_ne_bytes());
    assert_eq!(with[40..], attribute(IFLA_TARGET_NETNSID, &[7, 0, 0, 0]));
    assert_eq!(with.len() - link_request(2, None).numbered(1).len(), 8);
}
