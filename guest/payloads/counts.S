# Counts for ever, in every kind of state that a snapshot must keep: a register, memory, an XMM
# register, an MSR. Prints eight hexadecimal digits each round; the first line is the number of CPUs.
# The other CPUs count too, each in a register and in memory, and a round ends only when each has
# counted further. If a count differs from the others, it prints a line that is not a number and ends.
.include "header.inc"
	.equ APIC, 0xfee00000		# the registers of each CPU's own local APIC
	.equ SPURIOUS, 0x0f0		# bit 8 enables the APIC
	.equ ICR_LOW, 0x300		# writing it sends: type, vector, and bits 18 and 19: all but self
	.equ START, 0x1000		# where the others start: a page below 1 MiB
	.equ KERNEL_GS_BASE, 0xc0000102	# an MSR that nothing here uses

.code64
.text
	flat_header 64
	mov %cr0, %rax
	and $~4, %eax			# EM off, OSFXSR on: SSE (Intel SDM 3A, 2.5)
	mov %rax, %cr0
	mov %cr4, %rax
	or $0x200, %eax
	mov %rax, %cr4
	cld

	mov $other, %esi
	mov $START, %edi
	mov $other_end - other, %ecx
	rep movsb
	mov $APIC, %ebp
	movl $0x1ff, SPURIOUS(%rbp)
	movl $0xc4500, ICR_LOW(%rbp)	# INIT: reset, and wait
	mov $100, %ecx
1:	in $0x80, %al
	loop 1b
	movl $0xc4600 | START >> 12, ICR_LOW(%rbp) # SIPI: start at this page
	mov $8000, %ecx			# long enough for them to arrive
2:	in $0x80, %al
	loop 2b
	mov arrived, %r8d
	mov %r8d, %eax
	call print

	xor %ebx, %ebx
	movdqu lanes, %xmm7
round:
	inc %ebx
	incl counted
	movdqu %xmm7, scratch
	incl scratch
	movdqu scratch, %xmm7
	movl $0, scratch		# do not take the value from memory
	mov %ebx, %eax
	xor %edx, %edx
	mov $KERNEL_GS_BASE, %ecx
	wrmsr

	mov $1, %esi			# the others
3:	cmp %r8d, %esi
	jae 5f
	mov seen(, %rsi, 4), %eax
4:	pause
	cmp counts(, %rsi, 4), %eax
	je 4b
	mov counts(, %rsi, 4), %eax
	mov %eax, seen(, %rsi, 4)
	inc %esi
	jmp 3b

5:	cmpb $0, wrong
	jne broken
	rdmsr
	cmp %eax, %ebx
	jne broken
	cmp counted, %ebx
	jne broken
	movdqu %xmm7, scratch
	cmp scratch, %ebx
	jne broken
	cmpl $0x77777777, scratch + 12
	jne broken
	mov %ebx, %eax
	call print
	jmp round

broken:
	mov $lost, %esi
	mov $lost_end - lost, %ecx
	mov $0x3f8, %dx
	rep outsb
	power_off

# EAX in hexadecimal.
print:
	mov %eax, %edi
	mov $0x3f8, %dx
	mov $8, %ecx
6:	rol $4, %edi
	mov %edi, %eax
	and $15, %eax
	mov digits(%rax), %al
	out %al, %dx
	loop 6b
	mov $'\n', %al
	out %al, %dx
	ret

digits:	.ascii "0123456789abcdef"
lost:	.ascii "a count is lost\n"
lost_end:
	.balign 16
lanes:	.long 0, 0x55555555, 0x66666666, 0x77777777
scratch: .skip 16
counted: .long 0
arrived: .long 1
counts:	.skip 4 * 32
seen:	.skip 4 * 32
wrong:	.long 0

# The other CPUs, in real mode, at any address.
.code16
other:
	xor %ax, %ax
	mov %ax, %ds
	mov $1, %bx
	lock xadd %bx, arrived
	shl $2, %bx
	xor %ecx, %ecx
7:	inc %ecx
	incl counts(%bx)
	cmp %ecx, counts(%bx)
	je 7b
	movb $1, wrong
8:	cli
	hlt
	jmp 8b
other_end:
