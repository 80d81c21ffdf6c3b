"""Characters that are invisible, or that change how other characters are displayed."""

from __future__ import annotations

__all__ = ["ACTIVE", "JOINED", "JOINERS"]

# From Unicode 16.0.0:
# - UnicodeData.txt: the categories Cc, Cf, Zl, Zp and Cs, except line feed and tab, and except the
#   visible marks around numbers (PropList.txt, Prepended_Concatenation_Mark: U+0600 to 0605, 06DD,
#   070F, 0890, 0891, 08E2, 110BD, 110CD);
# - DerivedCoreProperties.txt: Default_Ignorable_Code_Point except the two joiners. The property
#   covers variation selectors, Hangul fillers, and code points reserved for such characters;
# - PropList.txt: Noncharacter_Code_Point in the first plane.
# Spaces (Zs) and private use characters (Co) are visible: as blanks, and as glyphs of the font.
ACTIVE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e"
    "\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\ufffe\uffff\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
# Zero width non-joiner and joiner. Persian, the scripts of India, and emoji need them, so they are
# kept between two characters of JOINED: those beyond Latin, Greek and combining marks.
JOINERS = "\u200c\u200d"
JOINED = "\u0400-\u1fff\u2100-\U0010ffff"
