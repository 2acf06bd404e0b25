#!/bin/sh
# What an operator of Kubernetes nodes does with eswitchd on a host whose VMs are those nodes: each
# guest VF of a node gets a port, in which pods come and go without a word to the host.
#
#   node-operator.sh SOCKET network NAME VID             declares the network of an attachment definition
#   node-operator.sh SOCKET attach NODE DEVICE NAME MAX  lets a VF of a node take part in it, with as many
#                                                        addresses as pods may have at a time
#   node-operator.sh SOCKET detach NODE DEVICE           takes the permission away
#   node-operator.sh SOCKET remove NAME                  takes a network away that no VF has
#
# Every request is idempotent: after a failure, the same command again is right. Needs curl 7.82.
set -eu

[ $# -ge 3 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
socket=$1 command=$2
shift 2

# Method, path, body. Prints the daemon's words where it refuses.
ask() {
    answer=$(mktemp)
    status=$(curl -sS -o "$answer" -w '%{http_code}' --unix-socket "$socket" -X "$1" \
        "http://localhost$2" ${3:+--json "$3"})
    case $status in
        2??) rm "$answer" ;;
        404) rm "$answer"; [ "$1" = DELETE ] ;;
        *) cat "$answer" >&2; rm "$answer"; exit 1 ;;
    esac
}

wait='wait=programmed&timeout=20'
case $command in
    network)
        ask PUT "/v1/networks/$1?$wait" "{\"spec\": {\"kind\": {\"vlan\": {\"vid\": $2}}}}" ;;
    attach)
        # No wait: the VF may be made later, by the node's SR-IOV device plug-in.
        ask PUT "/v1/ports/$1.$2" "{\"spec\": {
            \"function\": {\"guest_vf\": {\"guest\": \"$1\", \"device\": \"$2\"}},
            \"attachments\": [{\"network\": \"$3\"}],
            \"guest_macs\": {\"max\": $4}}}" ;;
    detach)
        ask DELETE "/v1/ports/$1.$2?$wait" ;;
    remove)
        ask DELETE "/v1/networks/$1?$wait" ;;
    *)
        echo "no such command: $command" >&2
        exit 2 ;;
esac
echo "$command $*"
