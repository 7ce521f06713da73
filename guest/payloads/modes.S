# From real mode to long mode, the path of every 64-bit kernel (Intel SDM 3A, 10.8.5 and
# 10.9). Prints "16", "32" and "64", each from code of that width. Without long mode in
# CPUID it prints a message and stops, as a kernel would.
.include "header.inc"
	.equ CODE32, 0x08		# selectors: offsets into the GDT below
	.equ DATA, 0x10
	.equ CODE64, 0x18
	.equ TABLES, 0x10000		# PML4, PDPT and a page directory; memory starts as zeros

.macro say tens, ones			# two digits and a newline to COM1
	mov $0x3f8, %dx
	mov $'0' + \tens, %al
	out %al, %dx
	mov $'0' + \ones, %al
	out %al, %dx
	mov $'\n', %al
	out %al, %dx
.endm

.code16
.text
	flat_header 16
	say 1, 6

# Real mode to protected mode: a table of segments, the PE bit of CR0, and a far jump that
# loads CS; until then the CPU uses the segment it has.
	cli				# the real-mode interrupt table is useless from here on
	lgdt gdt_pointer
	mov %cr0, %eax
	or $1, %eax			# PE
	mov %eax, %cr0
	ljmp $CODE32, $protected

.code32
protected:
	mov $DATA, %ax
	mov %ax, %ds
	mov %ax, %ss
	say 3, 2

# Check first: CPUID.80000001H:EDX bit 29.
	mov $0x80000001, %eax
	cpuid
	bt $29, %edx
	jnc none

# Long mode requires paging. One page of 2 MiB is enough: addresses 0 to 2 MiB map to
# themselves, through three tables. 3 is present and writable, 0x80 a large page.
	movl $TABLES + 0x1003, TABLES
	movl $TABLES + 0x2003, TABLES + 0x1000
	movl $0x83, TABLES + 0x2000
	mov $TABLES, %eax
	mov %eax, %cr3

	mov %cr4, %eax
	or $(1 << 5), %eax		# PAE: entries of 8 bytes
	mov %eax, %cr4
	mov $0xc0000080, %ecx		# the register EFER
	rdmsr
	or $(1 << 8), %eax		# LME: enable long mode
	wrmsr
	mov %cr0, %eax
	or $(1 << 31), %eax		# PG: paging on, and with it long mode
	mov %eax, %cr0
	ljmp $CODE64, $long		# until here 32-bit code in long mode

.code64
long:
	movabs $0x100000000, %rax	# a number that needs 33 bits
	shr $32, %rax
	cmp $1, %rax
	jne 1f
	say 6, 4
1:	power_off

.code32
none:
	mov $0x3f8, %dx
	mov $message, %esi
	mov $message_end - message, %ecx
	rep outsb
	power_off

message:
	.ascii "no long mode\n"
message_end:
	.balign 8
gdt:
	.quad 0				# entry 0 is never used
	.quad 0x00cf9b000000ffff	# 32-bit code, 0 to 4 GiB
	.quad 0x00cf93000000ffff	# data, 0 to 4 GiB
	.quad 0x00af9b000000ffff	# 64-bit code: bit 53 (L), and bit 54 (D) clear
gdt_pointer:
	.word . - gdt - 1
	.long gdt
