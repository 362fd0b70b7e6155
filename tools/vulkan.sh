#!/bin/sh
# A Vulkan device for ManiSkill, which needs one even for states: Mesa's lavapipe, which draws on the CPU. SAPIEN refuses lavapipe
# before Mesa 24.3; on Debian 12, which has 22.3, it comes from the backports, by the mirror that apt uses already.
# Root gets it installed, others are told the lines.
package=mesa-vulkan-drivers
oldest=24.3
list=/etc/apt/sources.list.d/difftop-backports.list
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

new_enough() { [ -n "$1" ] && [ "$1" != "(none)" ] && dpkg --compare-versions "$1" ge "$oldest"; }
installed() { dpkg-query -W -f='${db:Status-Abbrev} ${Version}' "$package" 2>/dev/null | sed -n 's/^ii *//p'; }
offered() { apt-cache policy "$package" | sed -n 's/^ *Candidate: *//p'; }
known() { apt-cache madison "$package" | grep -F "$release-backports"; } # apt never offers backports by itself
by_hand() {
    echo "ManiSkill needs a Vulkan device: install Mesa's lavapipe ($package) $oldest or newer by hand; this system doesn't offer it"
    exit 0
}

command -v apt-get >/dev/null && command -v dpkg-query >/dev/null || by_hand
new_enough "$(installed)" && exit 0

release=$(. /etc/os-release && echo "$VERSION_CODENAME")
source= target=
if ! new_enough "$(offered)"; then
    [ "$release" = bookworm ] || by_hand
    target="-t $release-backports"
    if [ -z "$(known)" ]; then
        sites=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' "Codename: $release")
        mirror=$(echo "$sites" | sed -n "s/ $release\$//p" | head -n 1)
        [ -n "$mirror" ] || by_hand
        source="deb [signed-by=$keyring] $mirror $release-backports main"
    fi
fi
install="apt-get install -y --no-install-recommends $target $package"

if [ "$(id -u)" != 0 ]; then
    echo "ManiSkill needs a Vulkan device; run"
    [ -z "$source" ] || echo "  echo '$source' | sudo tee $list"
    echo "  sudo apt-get update && sudo $install"
    exit 0
fi
echo "installing $package"
[ -z "$source" ] || echo "$source" >"$list"
apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install -qq >/dev/null
new_enough "$(installed)" && exit 0
[ -z "$source" ] || rm -f "$list"
echo "$package $oldest or newer could not be installed; ManiSkill won't run"
exit 1
